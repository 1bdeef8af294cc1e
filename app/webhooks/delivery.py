"""One try at a delivery: claim, send, settle. The sending holds no transaction."""

import random
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, assert_never

import httpcore
import httpx
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased
from standardwebhooks import Webhook

from app.settings import get_settings
from app.webhooks import addresses, service
from app.webhooks.addresses import IP, AddressRefused, Lookup
from app.webhooks.models import WebhookDelivery, WebhookEndpoint

PER_ENDPOINT = 2
"""Tries at once; an endpoint that lets us wait keeps no other's deliveries waiting."""
MAX_ANSWER_BYTES = 4096
"""What is read of an answer, so that its sender can finish; nobody looks at it."""


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


Outcome = Delivered | Gone | NotDelivered


class NotSent(Exception):
    """No answer came; the message says why."""


def claim(session: Session, *, lease: timedelta) -> Claimed | None:
    """Take the delivery that is due longest, if it is nobody else's."""
    now = func.now()
    other = aliased(WebhookDelivery)
    tries_at_once = (
        select(func.count())
        .where(other.endpoint_id == WebhookDelivery.endpoint_id, other.status == "pending", other.locked_until > now)
        .scalar_subquery()
    )
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.status == "pending",
            WebhookDelivery.next_attempt_at <= now,
            or_(WebhookDelivery.locked_until.is_(None), WebhookDelivery.locked_until <= now),
            tries_at_once < PER_ENDPOINT,
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
    old_signs = session.scalar(select(WebhookEndpoint.old_secret_until > now).where(WebhookEndpoint.id == endpoint.id))
    return Claimed(
        delivery_id=delivery.id,
        attempt=delivery.attempts,
        endpoint_id=endpoint.id,
        url=endpoint.url,
        event_id=delivery.event_id,
        body=delivery.body,
        secrets=(endpoint.secret, endpoint.old_secret) if old_signs and endpoint.old_secret else (endpoint.secret,),
    )


def attempt(claimed: Claimed) -> Outcome:
    """Send, and say what came of it."""
    try:
        status_code = send(claimed.url, claimed.event_id, claimed.body, claimed.secrets)
    except (NotSent, AddressRefused) as error:
        return NotDelivered(str(error))
    if 200 <= status_code < 300:
        return Delivered(status_code)
    if status_code == 410:
        return Gone()
    hint = "; redirects are not followed" if 300 <= status_code < 400 else ""
    return NotDelivered(f"The endpoint answered {status_code}{hint}.", status_code)


def settle(session: Session, claimed: Claimed, outcome: Outcome) -> None:
    """Enter what came of a try, unless another has begun meanwhile. An endpoint is locked before its deliveries."""
    if isinstance(outcome, Gone):
        service.disable(session, claimed.endpoint_id, claimed.url)
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
        case NotDelivered(error, status_code):
            delivery.last_status_code, delivery.last_error = status_code, error
            if delivery.status == "pending":
                _wait_or_give_up(delivery)
        case _:
            assert_never(outcome)
    session.flush()


def _wait_or_give_up(delivery: WebhookDelivery) -> None:
    delays = get_settings().webhook_retry_delays
    if delivery.failures >= len(delays):
        delivery.status, delivery.next_attempt_at = "failed", None
    else:
        # Later by up to a quarter, so that what failed together does not come back together.
        delay = delays[delivery.failures] * random.uniform(1, 1.25)  # noqa: S311  no secret
        delivery.next_attempt_at = func.now() + delay
    delivery.failures += 1


def send(
    url: str,
    event_id: str,
    body: str,
    secrets: Iterable[str],
    *,
    ask: Lookup = addresses.lookup,
    tls: ssl.SSLContext | None = None,
) -> int:
    """POST a signed event to an address that was checked just now; returns the status of the answer.

    Raises `AddressRefused`, or `NotSent` when no answer comes in time. Follows no redirect and asks no proxy: the
    connection goes to the very IP address that was checked, whatever the name resolves to by then.
    """
    target = addresses.resolve(url, ask)
    now = datetime.now(UTC)
    signatures = " ".join(Webhook(secret).sign(event_id, now, body) for secret in secrets)
    headers = {
        "host": target.url.netloc.decode("ascii"),
        "content-type": "application/json",
        "user-agent": "finetuned-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signatures,
    }
    asked = httpcore.URL(
        scheme=target.url.raw_scheme, host=target.url.raw_host, port=target.url.port, target=target.url.raw_path
    )
    timeout = get_settings().webhook_timeout.total_seconds()
    line = _PinnedBackend(target.addresses, until=time.monotonic() + timeout)
    every = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    try:
        with (
            httpcore.ConnectionPool(ssl_context=tls or _tls(), network_backend=line) as pool,
            pool.stream(
                "POST", asked, headers=list(headers.items()), content=body.encode(), extensions={"timeout": every}
            ) as response,
        ):
            _drain(response)
            return response.status
    except httpcore.TimeoutException as error:
        raise NotSent(f"The endpoint has not answered within {timeout:g} s.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        said = str(error).rstrip(".") or type(error).__name__
        raise NotSent(f"The endpoint could not be reached: {said}.") from error


def _drain(response: httpcore.Response) -> None:
    """Whatever becomes of the body, the status has come."""
    arrived = 0
    try:
        for chunk in response.iter_stream():
            arrived += len(chunk)
            if arrived >= MAX_ANSWER_BYTES:
                return
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        return


@lru_cache
def _tls() -> ssl.SSLContext:
    """The authorities of certifi, or those that SSL_CERT_FILE names."""
    return httpx.create_ssl_context()


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to the addresses it was given, whatever host it is asked for; all together ends at one moment."""

    def __init__(self, found: tuple[IP, ...], *, until: float) -> None:
        self._found = found
        self._until = until
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002  where this name leads was decided before
        port: int,
        timeout: float | None = None,  # noqa: ARG002  there is one end for all
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try one address after the other; none may use up the time of those behind it."""
        failed: Exception = httpcore.ConnectError("It has no address")
        for behind, ip in zip(reversed(range(len(self._found))), self._found, strict=True):
            wait = _left(self._until) / (behind + 1)
            try:
                stream = self._sockets.connect_tcp(str(ip), port, wait, local_address, socket_options)
                return _BoundedStream(stream, self._until)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


class _BoundedStream(httpcore.NetworkStream):
    """A connection that ends at a moment, however often it brings a byte until then."""

    def __init__(self, stream: httpcore.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  there is one end for all
        """Some bytes."""
        return self._stream.read(max_bytes, _left(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """All bytes."""
        self._stream.write(buffer, _left(self._until))

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """The same under TLS, asking for the name in the address."""
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, _left(self._until)), self._until)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a connection."""
        return self._stream.get_extra_info(info)


def _left(until: float) -> float:
    """Seconds; httpcore takes 0 for "do not wait at all", which reads as a timeout too."""
    left = until - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("The time is over")
    return left
