"""What a user can do with webhook endpoints and their deliveries, and how an event becomes deliveries."""

import base64
import json
import secrets
import time
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.errors import IllegalMove, InvalidRequest, NotFound
from app.pages import Page, page_of
from app.webhooks.models import WebhookDelivery, WebhookEndpoint

MAX_ENDPOINTS = 100
"""Of a project: each of its events becomes a row for each of them."""
OVERLAP = timedelta(hours=24)
"""How long the secret before still signs, for an owner who asks for that."""


def create(session: Session, project: Project, *, name: str, url: str, event_types: list[str]) -> WebhookEndpoint:
    """Make an endpoint, with a secret. Its address is checked before. Raises `InvalidRequest` for one too many."""
    mine = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == project.id)
    if (session.scalar(mine) or 0) >= MAX_ENDPOINTS:
        raise InvalidRequest(f"A project can have {MAX_ENDPOINTS} webhook endpoints. Delete one first.")
    endpoint = WebhookEndpoint(
        id=new_id("we_"),
        project_id=project.id,
        name=name,
        url=url,
        event_types=list(dict.fromkeys(event_types)),
        secret=_new_secret(),
    )
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def get(session: Session, project: Project, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """An endpoint of the project. Raises `NotFound`."""
    mine = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project.id)
    endpoint = session.scalar(mine.with_for_update(key_share=True) if lock else mine)
    if endpoint is None:
        raise NotFound(f"No such webhook endpoint: {endpoint_id}", param="webhook_endpoint_id")
    return endpoint


def endpoints(session: Session, project: Project, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
    """A page of the project's endpoints."""
    mine = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project.id)
    return page_of(session, mine, WebhookEndpoint, after=after, limit=limit)


def change(
    session: Session,
    project: Project,
    endpoint_id: str,
    *,
    name: str | None,
    url: str | None,
    event_types: list[str] | None,
) -> WebhookEndpoint:
    """Set what is given. An address, the same one too, enables an endpoint that was gone."""
    endpoint = get(session, project, endpoint_id, lock=True)
    if name is not None:
        endpoint.name = name
    if url is not None:
        endpoint.url, endpoint.disabled_at = url, None
    if event_types is not None:
        endpoint.event_types = list(dict.fromkeys(event_types))
    if session.is_modified(endpoint):
        _touch(session, endpoint)
    return endpoint


def rotate_secret(session: Session, project: Project, endpoint_id: str, *, keep_old: bool) -> WebhookEndpoint:
    """Give an endpoint a new secret; the old one signs on beside it for a day, or ends at once."""
    endpoint = get(session, project, endpoint_id, lock=True)
    endpoint.old_secret = endpoint.secret if keep_old else None
    endpoint.old_secret_until = func.now() + OVERLAP if keep_old else None
    endpoint.secret = _new_secret()
    _touch(session, endpoint)
    return endpoint


def remove(session: Session, project: Project, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries. Raises `NotFound`."""
    session.delete(get(session, project, endpoint_id, lock=True))
    session.flush()


def signing_secrets(session: Session, endpoint: WebhookEndpoint) -> tuple[str, ...]:
    """Those that sign just now: the newest, and for a while after a rotation the one before."""
    old = select(WebhookEndpoint.old_secret).where(
        WebhookEndpoint.id == endpoint.id, WebhookEndpoint.old_secret_until > func.now()
    )
    return (endpoint.secret, *session.scalars(old.where(WebhookEndpoint.old_secret.is_not(None))))


def disable(session: Session, endpoint_id: str, url: str) -> bool:
    """The address says that it is gone: give up what waits for it, unless it was changed meanwhile."""
    here = (WebhookEndpoint.id == endpoint_id, WebhookEndpoint.url == url)
    disabled = update(WebhookEndpoint).where(*here).values(disabled_at=func.now()).returning(WebhookEndpoint.id)
    if session.scalar(disabled) is None:
        return False
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.status == "pending")
        .values(status="failed", next_attempt_at=None, last_error="The endpoint was disabled: it answered 410.")
    )
    return True


def announce(session: Session, project_id: str, event_type: str, *, subject: str, at: datetime) -> None:
    """Something has happened, in this same transaction: enter it for every endpoint that wants to hear of it.

    An endpoint cannot be deleted between being found and being referred to.
    """
    wanted_by = session.scalars(
        select(WebhookEndpoint.id)
        .where(
            WebhookEndpoint.project_id == project_id,
            WebhookEndpoint.event_types.contains([event_type]),
            WebhookEndpoint.disabled_at.is_(None),
        )
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
    ).all()
    event_id, body = event(event_type, subject=subject, at=int(at.timestamp()))
    session.add_all(
        WebhookDelivery(
            id=new_id("whd_"),
            endpoint_id=endpoint_id,
            event_id=event_id,
            type=event_type,
            body=body,
            next_attempt_at=func.now(),
        )
        for endpoint_id in wanted_by
    )
    session.flush()


def event(event_type: str, *, subject: str, at: int | None = None) -> tuple[str, str]:
    """An event in OpenAI's shape, as its id and its JSON; it happened at a Unix second, or just now."""
    event_id = new_id("evt_")
    body: dict[str, Any] = {
        "id": event_id,
        "object": "event",
        "created_at": int(time.time()) if at is None else at,
        "type": event_type,
        "data": {"id": subject},
    }
    return event_id, json.dumps(body, separators=(",", ":"))


def deliveries(
    session: Session, project: Project, endpoint_id: str, *, after: str | None, limit: int
) -> Page[WebhookDelivery]:
    """A page of an endpoint's deliveries. Raises `NotFound`."""
    endpoint = get(session, project, endpoint_id)
    its = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    return page_of(session, its, WebhookDelivery, after=after, limit=limit)


def send_again(session: Session, project: Project, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    """Try a delivery now, and from the beginning of the table of waits; also one that was taken already.

    Raises `NotFound`, or `IllegalMove` for an endpoint that is disabled.
    """
    endpoint = get(session, project, endpoint_id)
    if endpoint.disabled_at is not None:
        raise IllegalMove(f"The endpoint {endpoint.id} is disabled since it answered 410. Set its url first.")
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint.id)
        .with_for_update()
    )
    if delivery is None:
        raise NotFound(f"No such delivery: {delivery_id}", param="delivery_id")
    delivery.status, delivery.failures, delivery.delivered_at = "pending", 0, None
    delivery.next_attempt_at = func.now()
    session.flush()
    session.refresh(delivery)
    return delivery


def forget(session: Session, age: timedelta) -> None:
    """Strike off what was delivered or given up long ago."""
    over = (WebhookDelivery.status != "pending", WebhookDelivery.created_at < func.now() - age)
    session.execute(delete(WebhookDelivery).where(*over))


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(30)).decode()  # 24 to 64 bytes; 30 need no padding


def _touch(session: Session, endpoint: WebhookEndpoint) -> None:
    endpoint.updated_at = func.now()
    session.flush()
    session.refresh(endpoint)
