"""One try at a delivery: claim, send, settle. The sending holds no transaction."""

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import assert_never

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased

from app.settings import get_settings
from app.webhooks import sending, service
from app.webhooks.addresses import AddressRefused
from app.webhooks.models import WebhookDelivery, WebhookEndpoint

PER_ENDPOINT = 2
"""Tries at once; an endpoint that lets us wait keeps no other's deliveries waiting."""
PER_PROJECT = 4
"""The same of a project, which may have a hundred endpoints that let us wait."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The right to one try, until the lease is over."""

    delivery_id: str
    attempt: int
    endpoint_id: str
    url: str
    event_id: str
    body: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The endpoint took it."""

    status_code: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The endpoint wants to hear nothing any more."""


@dataclass(frozen=True, slots=True)
class NotDelivered:
    """The endpoint answered something else, or nothing."""

    error: str
    status_code: int | None = None
    retry_after: timedelta | None = None
    """How long it wants to be left alone, where it has too much to do or is down."""


Outcome = Delivered | Gone | NotDelivered


def claim(session: Session, *, lease: timedelta) -> Claimed | None:
    """Take the delivery that is due longest, if it is nobody else's."""
    now = func.now()
    other, its_endpoint = aliased(WebhookDelivery), aliased(WebhookEndpoint)
    tried = (other.status == "pending", other.locked_until > now)
    busy = select(other.endpoint_id).where(*tried).group_by(other.endpoint_id).having(func.count() >= PER_ENDPOINT)
    busy_projects = (
        select(its_endpoint.project_id)
        .join(other, other.endpoint_id == its_endpoint.id)
        .where(*tried)
        .group_by(its_endpoint.project_id)
        .having(func.count() >= PER_PROJECT)
    )
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.status == "pending",
            WebhookDelivery.next_attempt_at <= now,
            or_(WebhookDelivery.locked_until.is_(None), WebhookDelivery.locked_until <= now),
            WebhookDelivery.endpoint_id.not_in(busy),
            WebhookDelivery.endpoint_id.not_in(
                select(WebhookEndpoint.id).where(WebhookEndpoint.project_id.in_(busy_projects))
            ),
        )
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.seq)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if delivery is None:
        return None
    delivery.attempts += 1
    delivery.locked_until = now + lease
    session.flush()
    endpoint = session.get_one(WebhookEndpoint, delivery.endpoint_id)
    return Claimed(
        delivery_id=delivery.id,
        attempt=delivery.attempts,
        endpoint_id=endpoint.id,
        url=endpoint.url,
        event_id=delivery.event_id,
        body=delivery.body,
        secrets=service.signing_secrets(session, endpoint),
    )


def attempt(claimed: Claimed) -> Outcome:
    """Send, and say what came of it."""
    try:
        answer = sending.send(claimed.url, claimed.event_id, claimed.body, claimed.secrets)
    except (sending.NotSent, AddressRefused) as error:
        return NotDelivered(str(error))
    status_code = answer.status_code
    if 200 <= status_code < 300:
        return Delivered(status_code)
    if status_code == 410:
        return Gone()
    hint = "; redirects are not followed" if 300 <= status_code < 400 else ""
    retry_after = answer.retry_after if status_code in (429, 503) else None
    return NotDelivered(f"The endpoint answered {status_code}{hint}.", status_code, retry_after)


def settle(session: Session, claimed: Claimed, outcome: Outcome) -> None:
    """Enter what came of a try, unless another has begun meanwhile. An endpoint is locked before its deliveries."""
    if isinstance(outcome, Gone) and not service.disable(session, claimed.endpoint_id, claimed.url):
        outcome = NotDelivered("The endpoint answered 410, and has another address since.", 410)
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(WebhookDelivery.id == claimed.delivery_id, WebhookDelivery.attempts == claimed.attempt)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if delivery is None:
        return
    delivery.locked_until = None
    match outcome:
        case Delivered(status_code):
            delivery.status, delivery.next_attempt_at, delivery.delivered_at = "delivered", None, func.now()
            delivery.last_status_code, delivery.last_error = status_code, None
        case Gone():
            delivery.status, delivery.next_attempt_at = "failed", None
            delivery.last_status_code, delivery.last_error = 410, "The endpoint answered 410 and was disabled."
        case NotDelivered(error, status_code, retry_after):
            delivery.last_status_code, delivery.last_error = status_code, error
            if delivery.status == "pending":
                _wait_or_give_up(delivery, retry_after or timedelta(0))
        case _:
            assert_never(outcome)
    session.flush()


def _wait_or_give_up(delivery: WebhookDelivery, asked: timedelta) -> None:
    """As long as the table says, or as long as was asked for up to the table's longest."""
    delays = get_settings().webhook_retry_delays
    if delivery.failures >= len(delays):
        delivery.status, delivery.next_attempt_at = "failed", None
    else:
        # Later by up to a quarter, so that what failed together does not come back together.
        delay = max(delays[delivery.failures], min(asked, max(delays)))
        delivery.next_attempt_at = func.now() + delay * random.uniform(1, 1.25)  # noqa: S311  no secret
    delivery.failures += 1
