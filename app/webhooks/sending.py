"""The request itself: signed, and sent to the IP address that was checked and to no other."""

import re
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import httpcore
import httpx
from standardwebhooks import Webhook

from app.settings import get_settings
from app.webhooks import addresses
from app.webhooks.addresses import IP, Lookup

MAX_ANSWER_BYTES = 4096
"""What is read of an answer, so that its sender can finish; nobody looks at it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint says to an event."""

    status_code: int
    retry_after: timedelta | None = None
    """How long it wants to be left alone, if it names a time."""


class NotSent(Exception):
    """No answer came; the message says why."""


def send(
    url: str,
    event_id: str,
    body: str,
    secrets: Iterable[str],
    *,
    ask: Lookup = addresses.lookup,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """POST a signed event to an address that was checked just now.

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
            return Answer(response.status, _retry_after(response))
    except httpcore.TimeoutException as error:
        raise NotSent(f"The endpoint has not answered within {timeout:g} s.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        said = str(error).rstrip(".") or type(error).__name__
        raise NotSent(f"The endpoint could not be reached: {said}.") from error


def _retry_after(response: httpcore.Response) -> timedelta | None:
    """Seconds or a date, as HTTP has it; anything else is as good as nothing."""
    said = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
    text = said.decode("ascii", errors="replace").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return timedelta(seconds=int(text))
    with suppress(ValueError):
        return datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC) - datetime.now(UTC)
    return None


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
