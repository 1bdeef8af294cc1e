"""Webhooks: who wants to hear of what, and what is to be delivered."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq, Time

EVENT_TYPES = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
STATUSES = ("pending", "delivered", "failed")


class WebhookEndpoint(Base):
    """An address that is told of a project's events."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", "old_secret_ends"),
        Index("ix_webhook_endpoints_project", "project_id", "seq"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[Any]]
    secret: Mapped[str]
    """As it signs, since a hash could not; shown to its owner once."""
    old_secret: Mapped[str | None]
    """Signs too, until its time is over."""
    old_secret_until: Mapped[Time | None]
    disabled_at: Mapped[Time | None]
    """When it answered 410; nothing is sent to it until its address is set again."""
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class WebhookDelivery(Base):
    """One event for one endpoint, tried until it is taken or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", "known_status"),
        CheckConstraint("(next_attempt_at IS NOT NULL) = (status = 'pending')", "next_attempt_when_pending"),
        CheckConstraint("(delivered_at IS NOT NULL) = (status = 'delivered')", "delivered_when_delivered"),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "seq"),
        Index("ix_webhook_deliveries_over", "created_at", postgresql_where=text("status <> 'pending'")),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str]
    type: Mapped[str]
    body: Mapped[str]
    """The event as JSON, byte for byte the same in every try: it is what the signature is of."""
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    """All tries, those included that a killed process did not end; what a try is known by."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Since it was made, or sent again by hand; how far it is in the table of waits."""
    next_attempt_at: Mapped[Time | None]
    locked_until: Mapped[Time | None]
    """While a try goes on. One that ends without a word is over by then, and another may begin."""
    last_status_code: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    delivered_at: Mapped[Time | None]
