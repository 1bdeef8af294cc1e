"""A multipart body on its way to storage: parsed as it streams, never held in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from streaming_form_data import ParseFailedException, StreamingFormDataParser
from streaming_form_data.targets import BaseTarget, ValueTarget
from streaming_form_data.validators import MaxSizeValidator

from app.errors import InvalidRequest, TooLarge
from app.storage import Incoming

BATCH = 1024 * 1024
"""Bytes parsed, hashed and written in one turn of a worker thread."""


@dataclass(frozen=True, slots=True)
class Form:
    """What came beside the file's bytes."""

    filename: str
    purpose: str


class _ToIncoming(BaseTarget):  # type: ignore[misc]  # the library publishes no types
    """Hands the file part's bytes on, up to a limit."""

    def __init__(self, incoming: Incoming, max_bytes: int) -> None:
        super().__init__()
        self._incoming = incoming
        self._max_bytes = max_bytes

    def on_data_received(self, chunk: bytes) -> None:
        if self._incoming.bytes + len(chunk) > self._max_bytes:
            raise TooLarge(f"The file is larger than {self._max_bytes} bytes.", param="file")
        self._incoming.write(chunk)


async def receive(chunks: AsyncIterator[bytes], *, content_type: str, incoming: Incoming, max_bytes: int) -> Form:
    """Read a body with the parts `purpose` and `file`. Raises `InvalidRequest` or `TooLarge`."""
    if not content_type.startswith("multipart/form-data"):
        raise InvalidRequest("Send the file as multipart/form-data with the parts 'purpose' and 'file'.", param="file")
    file = _ToIncoming(incoming, max_bytes)
    purpose = ValueTarget(validator=MaxSizeValidator(64))
    try:
        parser = StreamingFormDataParser(headers={"Content-Type": content_type})
        parser.register("file", file)
        parser.register("purpose", purpose)
        async for batch in _batches(chunks):
            await run_in_threadpool(parser.data_received, batch)
    except ParseFailedException as error:
        raise InvalidRequest(f"The multipart body cannot be read: {error}.", param="file") from error
    except ValueError as error:  # what MaxSizeValidator raises
        raise InvalidRequest("The part 'purpose' is too long to be a purpose.", param="purpose") from error
    if file.multipart_filename is None:
        raise InvalidRequest("There is no part 'file' with a file name in the body.", param="file")
    if not purpose.value:
        raise InvalidRequest("The part 'purpose' is missing; send 'fine-tune' for a training file.", param="purpose")
    return Form(file.multipart_filename, purpose.value.decode(errors="replace"))


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
