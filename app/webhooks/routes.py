"""/v1/webhook_endpoints and /v1/webhook_event_types"""

from typing import Annotated

from fastapi import APIRouter, Path

from app.errors import InvalidRequest
from app.http import After, CallerDep, ListRead, SessionDep, limit_query, list_of
from app.webhooks import addresses, sending, service
from app.webhooks.models import EVENT_TYPES
from app.webhooks.schemas import (
    DeliveryRead,
    EndpointCreate,
    EndpointDeleted,
    EndpointRead,
    EndpointReadWithSecret,
    EndpointTest,
    EndpointTestRead,
    EndpointUpdate,
    EventTypeList,
    SecretRotation,
)
from app.webhooks.turns import Turns

router = APIRouter(prefix="/v1", tags=["webhooks"])

EndpointId = Annotated[str, Path(description="Id of an endpoint.")]
DeliveryId = Annotated[str, Path(description="Id of one of the endpoint's deliveries.")]

_look_ups = Turns(8, per_project=4)
_tests = Turns(4, per_project=2)


@router.get("/webhook_event_types")
def list_webhook_event_types(caller: CallerDep) -> EventTypeList:  # noqa: ARG001  a key is asked for
    """List what an endpoint can be told of."""
    return EventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints")
def create_webhook_endpoint(given: EndpointCreate, caller: CallerDep, session: SessionDep) -> EndpointReadWithSecret:
    """Name an address that is told how jobs end. The answer is the only one with the secret that signs."""
    with _look_ups.turn(caller.id):  # and no transaction yet: a name server may be slow
        addresses.resolve(given.url)
    with session.begin():
        endpoint = service.create(
            session, caller, name=given.name, url=given.url, event_types=list[str](given.event_types)
        )
        return EndpointReadWithSecret.of(endpoint)


@router.get("/webhook_endpoints")
def list_webhook_endpoints(
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 100) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[EndpointRead]:
    """List the project's endpoints, newest first."""
    with session.begin():
        page = service.endpoints(session, caller, after=after, limit=limit)
    return list_of(page, [EndpointRead.of(endpoint) for endpoint in page.rows])


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def get_webhook_endpoint(webhook_endpoint_id: EndpointId, caller: CallerDep, session: SessionDep) -> EndpointRead:
    """Retrieve an endpoint."""
    with session.begin():
        return EndpointRead.of(service.get(session, caller, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_webhook_endpoint(
    webhook_endpoint_id: EndpointId, given: EndpointUpdate, caller: CallerDep, session: SessionDep
) -> EndpointRead:
    """Change an endpoint. Setting its `url` enables it again after a 410."""
    if given.url is not None:
        with _look_ups.turn(caller.id):
            addresses.resolve(given.url)
    with session.begin():
        endpoint = service.change(
            session,
            caller,
            webhook_endpoint_id,
            name=given.name,
            url=given.url,
            event_types=None if given.event_types is None else list[str](given.event_types),
        )
        return EndpointRead.of(endpoint)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_webhook_endpoint(webhook_endpoint_id: EndpointId, caller: CallerDep, session: SessionDep) -> EndpointDeleted:
    """Delete an endpoint, with what was still to be delivered to it."""
    with session.begin():
        service.remove(session, caller, webhook_endpoint_id)
    return EndpointDeleted(id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
def rotate_webhook_secret(
    webhook_endpoint_id: EndpointId, caller: CallerDep, session: SessionDep, given: SecretRotation | None = None
) -> EndpointReadWithSecret:
    """Make a new secret. On request the old one signs beside it for 24 hours; otherwise it ends at once."""
    keep_old = given is not None and given.keep_old_secret_active_for_24_hours
    with session.begin():
        return EndpointReadWithSecret.of(service.rotate_secret(session, caller, webhook_endpoint_id, keep_old=keep_old))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
def test_webhook_endpoint(
    webhook_endpoint_id: EndpointId, given: EndpointTest, caller: CallerDep, session: SessionDep
) -> EndpointTestRead:
    """Send a signed sample now, once, and answer the status that came back."""
    with session.begin():
        endpoint = service.get(session, caller, webhook_endpoint_id)
        secrets = service.signing_secrets(session, endpoint)
    event_id, body = service.event(given.event_type, subject="ftjob-sample")
    try:
        with _tests.turn(caller.id):
            answer = sending.send(endpoint.url, event_id, body, secrets)
    except sending.NotSent as error:
        raise InvalidRequest(str(error), param="url", code="webhook_not_answered") from error
    return EndpointTestRead(
        webhook_endpoint_id=endpoint.id, event_type=given.event_type, status_code=answer.status_code
    )


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
def list_webhook_deliveries(
    webhook_endpoint_id: EndpointId,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 100) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[DeliveryRead]:
    """List an endpoint's deliveries of the last 30 days, newest first."""
    with session.begin():
        page = service.deliveries(session, caller, webhook_endpoint_id, after=after, limit=limit)
    return list_of(page, [DeliveryRead.of(row) for row in page.rows])


@router.post("/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/retry")
def retry_webhook_delivery(
    webhook_endpoint_id: EndpointId, delivery_id: DeliveryId, caller: CallerDep, session: SessionDep
) -> DeliveryRead:
    """Send a delivery again, with the same `webhook-id`: one that waits or was given up, and one that was taken."""
    with session.begin():
        return DeliveryRead.of(service.send_again(session, caller, webhook_endpoint_id, delivery_id))
