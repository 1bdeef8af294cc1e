"""How webhook endpoints and their deliveries look in a request and in a response."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.webhooks.models import WebhookDelivery, WebhookEndpoint

Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
Url = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x20\x7f]*$")]
EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=100)]


class Given(BaseModel):
    """A body that has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EndpointCreate(Given):
    """A new endpoint."""

    name: Name
    url: Url
    event_types: EventTypes


class EndpointUpdate(Given):
    """What shall change; the rest stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class SecretRotation(Given):
    """How the old secret ends."""

    keep_old_secret_active_for_24_hours: bool = False


class EndpointTest(Given):
    """Which event to send a sample of."""

    event_type: EventType


class EndpointRead(BaseModel):
    """OpenAI's webhook endpoint, and what this service adds below."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str

    disabled_at: int | None
    """When it answered 410; setting its url enables it."""

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        """From the row."""
        return cls.model_validate(_shown(endpoint))


class EndpointReadWithSecret(EndpointRead):
    """The same with its secret, which is answered when it is made and never again."""

    signing_secret: str = Field(repr=False)

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        """From the row."""
        return cls.model_validate(_shown(endpoint) | {"signing_secret": endpoint.secret})


def _shown(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "created_at": _unix(endpoint.created_at),
        "updated_at": _unix(endpoint.updated_at),
        "signing_secret_hint": f"whsec_…{endpoint.secret[-4:]}",
        "disabled_at": _unix(endpoint.disabled_at),
    }


class EndpointDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTestRead(BaseModel):
    """What an endpoint answered to a sample."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True
    """That an answer came, whichever it is."""


class EventTypeList(BaseModel):
    """All types there are."""

    object: Literal["list"] = "list"
    data: list[str]


class DeliveryRead(BaseModel):
    """One event on its way to one endpoint."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    event: str
    """The event's id, which is the `webhook-id` of every try."""
    type: str
    data: dict[str, Any]
    """The event's."""
    status: str
    attempts: int
    next_attempt_at: int | None
    last_status_code: int | None
    last_error: str | None
    created_at: int
    delivered_at: int | None

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> Self:
        """From the row."""
        return cls(
            id=delivery.id,
            event=delivery.event_id,
            type=delivery.type,
            data=json.loads(delivery.body)["data"],
            status=delivery.status,
            attempts=delivery.attempts,
            next_attempt_at=_unix(delivery.next_attempt_at),
            last_status_code=delivery.last_status_code,
            last_error=delivery.last_error,
            created_at=int(delivery.created_at.timestamp()),
            delivered_at=_unix(delivery.delivered_at),
        )


def _unix(time: datetime | None) -> int | None:
    return int(time.timestamp()) if time else None
