"""What a fine-tune file's rows say of it; read while the file arrives, where a thread is free for it."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from app.files import formats

PATIENCE = 0.5
"""Seconds for which a file with an error is read on: whoever uploads it waits, and a report will list all."""
READERS = 4
"""Files read while they arrive: each holds a thread for as long as its client takes. The others are read afterwards."""
POLL = 0.02
"""Seconds between two looks whether there is more to read."""

_free = threading.BoundedSemaphore(READERS)
_readers = ThreadPoolExecutor(READERS, thread_name_prefix="judging")


@dataclass(frozen=True, slots=True)
class Judgement:
    """How many rows there are, or what is wrong with them; of a file that is not for training, nothing."""

    rows: int | None = None
    problem: str | None = None


UNJUDGED = Judgement()


def judge(path: Path) -> Judgement:
    """Read a file that is there through."""
    with path.open("rb") as file:
        return _judge(file, lambda: True)


class Judging:
    """The judgement of a file that is still being written. Leaving the context gives it up, unless it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._growing: Growing | None = None
        self._judgement: Future[Judgement] | None = None

    def begin(self) -> None:
        """Read along from now on, if a thread is free."""
        if _free.acquire(blocking=False):
            self._growing = Growing(self._path)
            self._judgement = _readers.submit(self._read, self._growing)

    def end(self) -> Judgement:
        """Say that the file is whole, and wait for what is left to read."""
        if self._growing is None or self._judgement is None:
            return judge(self._path)
        self._growing.is_whole.set()
        return self._judgement.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._growing is not None:
            self._growing.give_up()

    @staticmethod
    def _read(growing: "Growing") -> Judgement:
        try:
            with growing, io.BufferedReader(growing) as file:
                return _judge(cast("BinaryIO", file), growing.is_whole.is_set)
        finally:
            _free.release()


class Growing(io.RawIOBase):
    """A file that somebody else is writing: who reads at its end waits until there is more, or there will be none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._given_up = False
        self.is_whole = threading.Event()

    def give_up(self) -> None:
        """Let it end where it is being read."""
        self._given_up = True
        self.is_whole.set()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is; a place counted from its end is known once it is whole."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # typeshed: a buffer of any kind
        """What there is, and at least a byte of it until the file ends."""
        while not self._given_up:
            whole = self.is_whole.is_set()  # asked first: what comes after the question is found by the next look
            if read := self._file.readinto(buffer):
                return read
            if whole:
                return 0
            self.is_whole.wait(POLL)
        return 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place in the file."""
        if whence == io.SEEK_END:
            self.is_whole.wait()
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it is read."""
        return self._file.tell()

    def close(self) -> None:
        """The writer's own file stays open."""
        self._file.close()
        super().close()


def _judge(file: BinaryIO, somebody_waits: Callable[[], bool]) -> Judgement:
    found = formats.check(file, patience=PATIENCE, somebody_waits=somebody_waits)
    return Judgement(problem=formats.summary(found)) if found.errors else Judgement(rows=found.rows)
