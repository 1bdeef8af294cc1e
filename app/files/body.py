"""A multipart body on its way to storage: parsed as it streams, never held in memory, cut off when it trickles."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from streaming_form_data import ParseFailedException, StreamingFormDataParser
from streaming_form_data.targets import BaseTarget, ValueTarget
from streaming_form_data.validators import MaxSizeValidator
from streaming_form_data.validators import ValidationError as TooLong

from app.errors import InvalidRequest, TooLarge, TooSlow
from app.files.schemas import ExpiresAfter
from app.settings import get_settings
from app.storage import Incoming

BATCH = 1024 * 1024
"""Bytes parsed, hashed and written in one turn of a worker thread."""
GRACE = 60.0
"""Seconds before a body's speed is looked at."""
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


@dataclass(frozen=True, slots=True)
class Form:
    """What came beside the file's bytes."""

    filename: str
    purpose: str
    expires_after: int | None
    """Seconds."""


class _ToIncoming(BaseTarget):  # type: ignore[misc]  # the library publishes no types
    """Hands a part's bytes on, up to a limit."""

    def __init__(
        self, incoming: Incoming, param: str, max_bytes: int, begins: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._begins = begins
        self._incoming = incoming
        self._param = param
        self._max_bytes = max_bytes

    def on_start(self) -> None:
        self._begins()

    def on_data_received(self, chunk: bytes) -> None:
        if self._incoming.bytes + len(chunk) > self._max_bytes:
            raise TooLarge(f"The {self._param} is larger than {self._max_bytes} bytes.", param=self._param)
        self._incoming.write(chunk)


async def receive(
    chunks: AsyncIterator[bytes],
    *,
    content_type: str,
    incoming: Incoming,
    max_bytes: int,
    begins: Callable[[str | None], None] = lambda _: None,
) -> Form:
    """Read a body with the parts `purpose`, `file` and perhaps `expires_after`.

    `begins` is told when the file's bytes begin to come, with the purpose if that came before them. Raises
    `InvalidRequest`, `TooLarge` or `TooSlow`.
    """
    fields = {name: ValueTarget(validator=MaxSizeValidator(64)) for name in FIELDS}
    purpose = fields["purpose"]
    file = _ToIncoming(
        incoming, "file", max_bytes, lambda: begins(purpose.value.decode(errors="replace") if purpose.value else None)
    )
    await _parse(chunks, content_type, {"file": file, **fields}, needed="'purpose' and 'file'")
    sent = {name: target.value.decode(errors="replace") for name, target in fields.items() if target.value}
    if file.multipart_filename is None:
        raise InvalidRequest("There is no part 'file' with a file name in the body.", param="file")
    if "purpose" not in sent:
        raise InvalidRequest("The part 'purpose' is missing; send 'fine-tune' for a training file.", param="purpose")
    return Form(file.multipart_filename, sent["purpose"], _seconds(sent))


async def receive_part(chunks: AsyncIterator[bytes], *, content_type: str, incoming: Incoming, max_bytes: int) -> None:
    """Read a body with the part `data`. Raises `InvalidRequest`, `TooLarge` or `TooSlow`."""
    data = _ToIncoming(incoming, "data", max_bytes)
    await _parse(chunks, content_type, {"data": data}, needed="'data'")
    if data.multipart_filename is None and incoming.bytes == 0:
        raise InvalidRequest("There is no part 'data' in the body.", param="data")


async def _parse(
    chunks: AsyncIterator[bytes], content_type: str, targets: dict[str, BaseTarget], *, needed: str
) -> None:
    first = next(iter(targets))
    if not content_type.startswith("multipart/form-data"):
        raise InvalidRequest(f"Send it as multipart/form-data with {needed}.", param=first)
    try:
        parser = StreamingFormDataParser(headers={"Content-Type": content_type})
        for name, target in targets.items():
            parser.register(name, target)
        async for batch in _batches(_in_time(chunks)):
            await run_in_threadpool(parser.data_received, batch)
    except ParseFailedException as error:
        raise InvalidRequest(f"The multipart body cannot be read: {error}.", param=first) from error
    except TooLong as error:
        raise InvalidRequest(f"One of the parts {', '.join(FIELDS)} is too long.", param="purpose") from error


def _seconds(sent: dict[str, str]) -> int | None:
    """Of `expires_after`, whose two halves are parts of their own. Raises `InvalidRequest`."""
    if not sent.keys() & {"expires_after[anchor]", "expires_after[seconds]"}:
        return None
    halves = {half: sent.get(f"expires_after[{half}]") for half in ("anchor", "seconds")}
    try:
        return ExpiresAfter.model_validate(halves).seconds
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(
            f"{first['msg']}. Send expires_after[anchor]=created_at and expires_after[seconds] from 3600 to 2592000.",
            param=f"expires_after[{first['loc'][0]}]",
        ) from error


async def _in_time(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes. Raises `TooSlow` for a body that stands still, or will not have ended within any patience."""
    settings = get_settings()
    idle = settings.upload_idle_timeout.total_seconds()
    clock = asyncio.get_running_loop().time
    began, arrived = clock(), 0
    source = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout_at(min(clock() + idle, began + GRACE + arrived / settings.upload_slowest)):
                chunk = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TooSlow(
                f"The body stands still or trickles: {arrived} bytes came in {clock() - began:.0f} s. Send it again"
                " over a better connection, or in parts through /v1/uploads.",
                param="file",
            ) from error
        arrived += len(chunk)
        yield chunk


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces, so that a thread is worth its switch."""
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if len(pending) >= BATCH:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)
