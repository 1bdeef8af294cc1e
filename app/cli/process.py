"""A child of `finetuned up`: started, watched, started again, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.cli import launch

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
SETTLED = 60.0
"""Seconds after which a child counts as well, and its next death as its first."""
LOG_LIMIT = 16 * 1024 * 1024


@dataclass
class Child:
    """One program of the service. `death` is the signal it gets when `up` itself is killed."""

    name: str
    program: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    death: signal.Signals = signal.SIGKILL
    user_namespace: bool = False
    inherited: Sequence[int] = ()
    """Descriptors that it keeps."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started_at: float = field(default=0.0, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)
    _due_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches only `up`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_launcher(self.death, self.user_namespace), "--", *self.program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                pass_fds=tuple(self.inherited),
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def tend(self) -> str | None:
        """Start it again when its pause is over. Returns a line to print when it is found dead."""
        if self.running:
            if time.monotonic() - self._started_at > SETTLED:
                self._pause = FIRST_PAUSE
            return None
        if self.process is not None:
            how = f"ended ({how_it_ended(self.process)})"
            self.process = None
            return self._pause_after(how)
        if time.monotonic() < self._due_at:
            return None
        try:
            self.start()
        except OSError as error:  # no memory or no space, which may pass
            return self._pause_after(f"does not start ({error})")
        return None

    def _pause_after(self, what: str) -> str:
        line = f"{self.name} {what}; starting it again in {self._pause:g} s"
        self._due_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return line + "".join(f"\n    {text}" for text in last_lines(self.log, 5))

    def ask_to_end(self) -> None:
        """Send its own signal for an orderly end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def end_by(self, deadline: float) -> None:
        """Wait for it until then (on the monotonic clock), and kill its whole group if it is still there."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kill its whole group. Waits for nothing, so that a signal handler may call it in the middle of a wait."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def run_to_end(child: Child) -> int:
    """Start a child that is expected to end; returns its exit code."""
    child.start()
    assert child.process is not None  # noqa: S101  just started
    return child.process.wait()


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """In words."""
    code = process.returncode
    names = {number.value: number.name for number in signal.Signals}  # which has no real-time signals
    return f"killed by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exit {code}"


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log; nothing where there is none."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _launcher(death: signal.Signals, user_namespace: bool) -> list[str]:
    options = ["--user-namespace"] if user_namespace else []
    return [sys.executable, "-S", "-E", launch.__file__, "--parent", str(os.getpid()), "--death", death.name, *options]
