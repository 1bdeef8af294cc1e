"""The trainer as a child process: started, heard, stopped. It may do what it likes; this process survives it."""

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from app.settings import get_settings
from worker import messages
from worker.lease import Lease, Wish
from worker.messages import AnyMessage
from worker.outcomes import Cancelled, Failed, Interrupted, Paused, TakenOver
from worker.standby import Child

log = logging.getLogger(__name__)

LOOK_UP = 0.1
"""Seconds between two looks at the lease while the trainer says nothing."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The trainer said `Done` and ended well."""


Ending = Finished | Cancelled | Paused | Interrupted | TakenOver | Failed


def attend(child: Child, lease: Lease, log_file: Path, hear: Callable[[AnyMessage], None]) -> Ending:
    """Hear a trainer until it has ended, stopping it when the lease says so. `hear` gets every message."""
    last: AnyMessage | None = None
    stop = Stop(child)
    for line in _lines(child, look_up=lambda: _look_up(lease, stop)):
        message = _decode(line)
        if message is None:
            continue
        hear(message)
        if isinstance(message, messages.Done | messages.Stopped | messages.Failed):
            last = message
    child.process.wait()
    return _ending(last, child.process.returncode, stop.wish, log_file)


class Stop:
    """Ends a trainer in the way that fits the wish: TERM saves a checkpoint, INT does not, KILL ends the grace."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._deadline = float("inf")
        self.wish: Wish | None = None

    def follow(self, wish: Wish) -> None:
        """Send the signal of a wish once; a claim that is lost meanwhile kills at once."""
        if wish is self.wish:
            self._kill_when_due()
            return
        self.wish = wish
        settings = get_settings()
        match wish:
            case Wish.CANCEL:
                self._child.signal(signal.SIGINT)
                self._deadline = time.monotonic() + settings.stop_grace.total_seconds()
            case Wish.PAUSE:
                self._child.signal(signal.SIGTERM)
                self._deadline = time.monotonic() + settings.stop_grace.total_seconds()
            case Wish.SHUTDOWN:
                self._child.signal(signal.SIGTERM)
                self._deadline = time.monotonic() + settings.shutdown_grace.total_seconds()
            case Wish.TAKEN_OVER:
                self._child.signal(signal.SIGKILL)

    def _kill_when_due(self) -> None:
        if time.monotonic() > self._deadline:
            log.warning("trainer %d did not stop within its grace; killing it", self._child.process.pid)
            self._child.signal(signal.SIGKILL)
            self._deadline = float("inf")


def _look_up(lease: Lease, stop: Stop) -> None:
    wish = lease.wish
    if wish is not None:
        stop.follow(wish)


def _lines(child: Child, *, look_up: Callable[[], None]) -> Iterator[bytes]:
    """The lines of a trainer's pipe until its end; looks up at least every tenth of a second."""
    pending = b""
    looked_at = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(child.events, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=LOOK_UP)
            if time.monotonic() - looked_at >= LOOK_UP:
                look_up()
                looked_at = time.monotonic()
            if not ready:
                continue
            arrived = os.read(child.events, 65536)
            if not arrived:
                return
            *lines, pending = (pending + arrived).split(b"\n")
            yield from lines


def _decode(line: bytes) -> AnyMessage | None:
    try:
        return messages.decode(line)
    except msgspec.DecodeError as error:
        log.warning("a line on the trainer's pipe is not a message (%s): %.200r", error, line)
        return None


def _ending(last: AnyMessage | None, returncode: int, wish: Wish | None, log_file: Path) -> Ending:
    """What an end means: the trainer's own last word if it had one, else what was wished, else that it was lost."""
    if wish is Wish.TAKEN_OVER:
        return TakenOver()
    match last:
        case messages.Done() if returncode == 0:
            return Finished()  # a cancel that comes after the last step is too late: the result exists
        case messages.Failed(code=code, message=message, param=param, retryable=retryable):
            return Failed(code, message, param, retryable)
        case _:
            pass
    if wish is Wish.CANCEL:
        return Cancelled()
    if wish is Wish.PAUSE:
        return Paused()
    if wish is Wish.SHUTDOWN:
        return Interrupted()
    return Failed("worker_lost", _how_it_died(returncode, log_file), retryable=True)


def _how_it_died(returncode: int, log_file: Path) -> str:
    how = f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with code {returncode}"
    tail = last_lines(log_file, 5)
    return f"The trainer {how} without a word." + (f" Its last lines: {tail}" if tail else "")


def last_lines(log_file: Path, count: int) -> str:
    """The end of a log, at most 4 kB of it; empty where there is none."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.strip().splitlines()[-count:])
