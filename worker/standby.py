"""Trainers as processes: a fresh one for each attempt, and one started ahead for its imports.

A standby waits for its WORKDIR on standard input. It holds no GPU memory, and dies with this process.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.settings import get_settings
from app.work.status import WorkKind
from worker.devices import Device

log = logging.getLogger(__name__)

MODULES = {
    WorkKind.PREPARE: "worker.training.prepare",
    WorkKind.REPORT: "worker.training.prepare",
    WorkKind.PREVIEW: "worker.training.prepare",
    WorkKind.PLAN: "worker.training.dry_run",
    WorkKind.TRAIN: "worker.training",
}
HIDDEN = (
    *("FINETUNED_DATABASE_URL", "FINETUNED_BROKER_URL", "FINETUNED_STORAGE_URL", "FINETUNED_API_KEY"),
    *("FINETUNED_METRICS_TOKEN", "OTEL_", "AWS_", "PG"),
)
"""How the names begin of what a trainer has no business with: addresses and secrets of servers."""

PARENT = "FINETUNED_PARENT_PID"
"""By which a trainer, and whatever it starts, is known to be its worker's."""

NICENESS = 10
"""Of those that train on a CPU: a tenth of the weight of other processes, for as long as these have something to do."""


@dataclass(frozen=True, slots=True)
class Child:
    """A trainer process and the pipe it speaks on."""

    process: subprocess.Popen[bytes]
    events: int

    def signal(self, number: signal.Signals) -> None:
        """Signal the trainer and everything it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """End it, if it has not ended, and let go of the pipe."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.events)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


@dataclass(slots=True)
class Trainers:
    """Where a slot gets its trainers from. Used by one thread, whose end is the trainers' end."""

    device: Device
    name: str
    """The slot's, for the log of trainers that have no job yet."""
    lock: int
    """Descriptor of the slot's lock: a trainer holds it too, so that the next worker waits until all are gone."""
    started: int = 0
    """How many were given work."""
    _waiting: dict[str, Child] = field(default_factory=dict)
    """By their module."""

    def start(self, kind: WorkKind, folder: Path) -> Child:
        """A trainer at work on a folder: the one that was standing by, if it still does."""
        child = self._standing_by(kind) or self._spawn(kind)
        self._waiting.pop(MODULES[kind], None)
        self.started += 1
        assert child.process.stdin is not None  # noqa: S101  spawned with a pipe
        with suppress(BrokenPipeError):  # it died just now; its end is heard on the events' pipe
            child.process.stdin.write(os.fsencode(folder) + b"\n")
            child.process.stdin.close()
        return child

    @property
    def standing_by(self) -> set[int]:
        """The process groups of those that wait for work."""
        return {child.process.pid for child in self._waiting.values()}

    def stand_by(self, kind: WorkKind) -> None:
        """Start the next trainer ahead, unless the settings say no; its imports wait for a core that nobody uses."""
        if get_settings().standby:
            self._start_ahead(kind, "--when-idle")

    def expect(self, kind: WorkKind) -> None:
        """Start a trainer for work that is on its way; it goes by itself if none comes for long."""
        self._start_ahead(kind, "--for-a-while")

    def _start_ahead(self, kind: WorkKind, *options: str) -> None:
        """Never an attempt's failure: whoever has none waiting starts one when there is work."""
        if self._standing_by(kind):
            return
        try:
            self._waiting[MODULES[kind]] = self._spawn(kind, *options)
        except OSError as error:
            log.warning("no trainer was started ahead: %s", error)

    def _standing_by(self, kind: WorkKind) -> Child | None:
        """Who waits for work; one that has ended meanwhile is put away."""
        child = self._waiting.get(MODULES[kind])
        if child is not None and child.process.poll() is not None:
            self._waiting.pop(MODULES[kind]).close()
            return None
        return child

    def close(self) -> None:
        """End whoever stands by."""
        for child in self._waiting.values():
            child.close()
        self._waiting.clear()

    def _spawn(self, kind: WorkKind, *options: str) -> Child:
        """Every trainer is told its WORKDIR on standard input, so that there is one way to start."""
        log_file = get_settings().home.absolute() / "logs" / f"trainer-{self.name}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        environment |= self.device.environment() | {
            "FINETUNED_EVENTS_FD": str(write_end),
            PARENT: str(os.getpid()),
            "FINETUNED_MODELS_DIR": str(get_settings().models),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' too; in a log they are one line of many kilobytes
        }
        try:
            with log_file.open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", MODULES[kind], "--wait", *options],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=(write_end, self.lock),
                    start_new_session=True,
                )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        if self.device.kind == "cpu" and kind is WorkKind.TRAIN:  # who prepares is waited for
            _give_way(process.pid)
        return Child(process, read_end)


def _give_way(pid: int) -> None:
    """Let a trainer that computes on all cores leave them to who answers requests on the same machine.

    Linux weighs processes of a session of their own against others by the session's niceness, where it has one.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))
