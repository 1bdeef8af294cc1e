"""A trainer's life, from its start to its last word: dying with the worker, the pipe, the signals, the WORKDIR.

Imports nothing heavy itself.
"""

import ctypes
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import psutil

from worker import messages
from worker.messages import AnyMessage

PR_SET_PDEATHSIG = 1

WAIT = "--wait"
WHEN_IDLE = "--when-idle"
FOR_A_WHILE = "--for-a-while"
IDLE_INTERVAL = 3.0
"""Seconds to look at: longer than a small base's loading, which leaves cores free just before it takes them all."""
FREE_CORES = 0.75
PATIENCE = 600.0
"""Seconds for which a trainer `--for-a-while` waits for its WORKDIR."""

Report = Callable[[AnyMessage], None]


class StopNow(BaseException):
    """A signal came while there was nothing worth finishing."""


def run(load: Callable[[], "Work"]) -> int:
    """Load the work, wait for a WORKDIR, do the work there. The exit code: 0 when it is done, or was told to stop.

    `load` does the imports that the work takes: they take seconds, in which a signal is answered already and a dead
    worker noticed.
    """
    become_child()
    stop, report = StopRequest(), reporter()
    try:
        wait_for_a_core()
        with importing():
            work = load()
            from worker.training import failures  # heavy, and after `load`, which says what may be imported
        work_dir = work_dir_from(sys.argv[1:])
        if work_dir is None:
            return 0
        try:
            outcome = work(work_dir, report, stop)
        except Exception as error:  # noqa: BLE001  whatever it is, the worker is told in its own words
            report(failures.last_word(error, work_dir))
            return 1
        stop.deferred = True  # what is done is done
        report(outcome)
    except StopNow:
        report(messages.Stopped(step=0))
    finally:
        stop.deferred = True
    return 0


def become_child() -> None:
    """Die with the worker that started this process, whatever kills it. Does nothing where no worker did."""
    parent = os.environ.get("FINETUNED_PARENT_PID")
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)


def is_told() -> bool:
    """Whether there is a WORKDIR already: then nothing is imported but what it needs."""
    return WAIT not in sys.argv[1:] or bool(select.select([sys.stdin], [], [], 0)[0])


def wait_for_a_core() -> None:
    """Hold the imports back while nobody leaves a core free: they would slow a training on the CPU down.

    A WORKDIR ends the wait.
    """
    if WHEN_IDLE not in sys.argv[1:]:
        return
    psutil.cpu_percent()  # what is used is counted from here
    while not select.select([sys.stdin], [], [], IDLE_INTERVAL)[0]:
        if (1 - psutil.cpu_percent() / 100) * (psutil.cpu_count() or 1) >= FREE_CORES:
            return


@contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector off what is imported: it finds nothing there, and takes a sixth of the time to.

    Nor does it look there later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def work_dir_from(arguments: list[str]) -> Path | None:
    """The WORKDIR of the command line, or after `--wait` the first line of standard input; None if none comes.

    Under a worker, everything printed from then on goes to WORKDIR/trainer.log.
    """
    if arguments in ([WAIT], [WAIT, WHEN_IDLE], [WAIT, FOR_A_WHILE]):
        if FOR_A_WHILE in arguments and not select.select([sys.stdin], [], [], PATIENCE)[0]:
            return None
        line = sys.stdin.readline()
        if not line:
            return None
        work_dir = Path(line.rstrip("\n"))
    elif len(arguments) == 1 and not arguments[0].startswith("-"):
        work_dir = Path(arguments[0])
    else:
        sys.exit("usage: python -m worker.training[.prepare] WORKDIR | --wait [--when-idle | --for-a-while]")
    if "FINETUNED_EVENTS_FD" in os.environ:
        _log_to(work_dir / "trainer.log")
    return work_dir.absolute()


def reporter() -> Report:
    """Writes each message as one line to the worker's pipe, or to standard output where there is no worker."""
    descriptor = int(os.environ.get("FINETUNED_EVENTS_FD", "1"))

    def report(message: AnyMessage) -> None:
        line = messages.encode(message)
        while line:
            line = line[os.write(descriptor, line) :]

    return report


class StopRequest:
    """What the signals wish: TERM to save a checkpoint and stop, INT to stop.

    While `deferred` a signal is only noted, for the training loop to follow at the end of its step; before and after
    that it raises `StopNow` where it arrives.
    """

    def __init__(self) -> None:
        self.wish: Literal["save", "stop"] | None = None
        self.deferred = False
        signal.signal(signal.SIGTERM, self._noted)
        signal.signal(signal.SIGINT, self._noted)

    def _noted(self, number: int, _: FrameType | None) -> None:
        self.wish = "save" if number == signal.SIGTERM and self.wish is None else "stop"
        if not self.deferred:
            raise StopNow


Work = Callable[[Path, Report, StopRequest], AnyMessage]
"""Done in a WORKDIR; returns its last word. What it raises is told as the failure it is."""


def leave(code: int) -> NoReturn:
    """End now: tearing an interpreter with torch down takes a second, and nothing in it is left to save."""
    with suppress(OSError):  # the disk that its log is on may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _log_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
