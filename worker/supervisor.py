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

from app.disks import NoSpace
from app.settings import get_settings
from worker import messages
from worker.hanging import Hanging
from worker.lease import Lease, Wish
from worker.messages import AnyMessage
from worker.outcomes import Cancelled, Failed, Interrupted, Paused, TakenOver
from worker.standby import Child

log = logging.getLogger(__name__)

OUT_OF_MEMORY_COUNTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""`oom_kill` of this container's group and below it, and of the whole machine."""
CANCEL_GRACE = 10.0
"""Seconds from INT to KILL at most: nothing is saved, and the device shall be free within 15 s of a cancel."""
LOOK_UP = 0.1
"""Seconds between two looks at the lease while the trainer says nothing."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The trainer said `Done` and ended well."""


Ending = Finished | Cancelled | Paused | Interrupted | TakenOver | Failed


def attend(child: Child, lease: Lease, hear: Callable[[AnyMessage], None], hanging: Hanging | None = None) -> Ending:
    """Hear a trainer until it has ended, stopping it when the lease says so. `hear` gets every message.

    `hanging`: stops it as well where it says nothing for too long. Raises `NoSpace` where it had no room to save.
    """
    last: AnyMessage | None = None
    stop = Stop(child)
    killed_before = out_of_memory_kills()

    def look_up() -> None:
        if (wish := lease.wish) is not None:
            stop.follow(wish)
        elif hanging is not None and (silent := hanging.seconds()) is not None:
            stop.hung(silent)

    for line in _lines(child, look_up=look_up):
        message = _decode(line)
        if message is None:
            continue
        if hanging is not None:
            hanging.hear(message)
        hear(message)
        if isinstance(message, messages.Done | messages.NoSpace | messages.Stopped | messages.Failed):
            last = message
    child.process.wait()
    ending = _ending(last, child.process.returncode, stop)
    if ending is None:
        by_kernel = out_of_memory_kills() > killed_before
        return _lost(child.process.returncode, killed_for_memory=by_kernel and not stop.killed)
    return ending


class Stop:
    """Ends a trainer in the way that fits the wish: TERM saves a checkpoint, INT does not, KILL ends the grace."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._deadline = float("inf")
        self.wish: Wish | None = None
        self.silent: float | None = None
        """Seconds for which it said nothing, if that is why it has to end."""
        self.killed = False

    def follow(self, wish: Wish) -> None:
        """Send the signal of a wish once; a claim that is lost meanwhile kills at once."""
        if wish is self.wish:
            self.kill_when_due()
            return
        self.wish = wish
        settings = get_settings()
        match wish:
            case Wish.CANCEL:
                self._child.signal(signal.SIGINT)
                self._deadline = time.monotonic() + min(CANCEL_GRACE, settings.stop_grace.total_seconds())
            case Wish.PAUSE:
                self._child.signal(signal.SIGTERM)
                self._deadline = time.monotonic() + settings.stop_grace.total_seconds()
            case Wish.SHUTDOWN:
                self._child.signal(signal.SIGTERM)
                self._deadline = time.monotonic() + settings.shutdown_grace.total_seconds()
            case Wish.TAKEN_OVER:
                self._kill()

    def hung(self, silent: float) -> None:
        """It said nothing for so many seconds: TERM, in case it only needs to be woken, and KILL after the grace."""
        if self.silent is None:
            log.warning("trainer %d has said nothing for %.0f s; stopping it", self._child.process.pid, silent)
            self.silent = silent
            self._child.signal(signal.SIGTERM)
            self._deadline = time.monotonic() + get_settings().stop_grace.total_seconds()
        self.kill_when_due()

    def kill_when_due(self) -> None:
        """Once the grace is over."""
        if time.monotonic() > self._deadline:
            log.warning("trainer %d did not stop within its grace; killing it", self._child.process.pid)
            self._kill()
            self._deadline = float("inf")

    def _kill(self) -> None:
        self.killed = True
        self._child.signal(signal.SIGKILL)


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


def _ending(last: AnyMessage | None, returncode: int, stop: Stop) -> Ending | None:
    """What an end means: the trainer's own last word if it had one, else what was wished; None: it was lost."""
    if stop.wish is Wish.TAKEN_OVER:
        return TakenOver()
    match last:
        case messages.Done() if returncode == 0:
            return Finished()  # a cancel that comes after the last step is too late: the result exists
        case messages.NoSpace(needed_bytes=needed):
            raise NoSpace("scratch", needed)
        case messages.Failed():
            return Failed(last.code, last.message, last.param, last.retryable, last.suggestion)
        case _:
            pass
    match stop.wish:
        case Wish.CANCEL:
            return Cancelled()
        case Wish.PAUSE:
            return Paused()
        case Wish.SHUTDOWN:
            return Interrupted()
    if stop.silent is not None:
        return Failed("hung", f"The trainer said nothing for {stop.silent:.0f} s and was stopped.", retryable=True)
    return None


def _lost(returncode: int, *, killed_for_memory: bool) -> Failed:
    if returncode == -signal.SIGKILL and killed_for_memory:
        return Failed(
            "out_of_host_memory",
            "The kernel killed the trainer: the worker's machine, or its container, ran out of memory.",
            retryable=True,
        )
    how = f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with code {returncode}"
    return Failed("worker_lost", f"The trainer {how} without a word.", retryable=True)


def out_of_memory_kills() -> int:
    """How often the kernel has killed for want of memory, here or, where it counts by that, in this machine."""
    return sum(_counted(path) for path in OUT_OF_MEMORY_COUNTS)


def _counted(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
