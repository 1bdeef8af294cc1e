"""Before a slot claims: no trainer of before is left on its device, and others hold little of its memory."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from app import disks, queue
from app.settings import get_settings
from worker.devices import ReadMemory
from worker.shutdown import shutting_down
from worker.standby import PARENT, Trainers

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds in which trainers that were killed are gone, with their memory; those that are not are killed by their pids.
"""
TOLD_AFTER = 1.0
"""Seconds that the end of a process may take without anybody being told."""
LOOK = 0.05
LOOK_LATER = 0.5
"""Seconds between two looks, in the first second and after it."""


class Vacancy:
    """Whether a slot's device is free for its next trainer; asked by the slot's thread."""

    def __init__(self, lock: Path, trainers: Trainers, read_memory: ReadMemory, *, patience: float = PATIENCE) -> None:
        self._lock = lock
        self._trainers = trainers
        self._read_memory = read_memory
        self._patience = patience
        self._locked = False
        self._started = 0
        """How many trainers had been started when none was left of them."""
        self.blocked: str | None = None
        """Why the slot takes no work, as a sentence; read by the thread that tells others."""

    def awaited(self, queue_name: str) -> bool:
        """Wait until the device is free; False: the worker shuts down first.

        Kills nobody but trainers that are this slot's, or nobody's. The slot may have heard for another one: rings
        again where it has to wait.
        """
        began = time.monotonic()
        killed_at = began
        while not shutting_down():
            obstacle = self._obstacle()
            now = time.monotonic()
            if obstacle is None:
                if self.blocked is not None:
                    log.info("the device is free after %.0f s", now - began)
                self.blocked = None
                return True
            if now - began >= TOLD_AFTER:
                if self.blocked is None:
                    log.warning("no work is taken until the device is free: %s", obstacle)
                    queue.ring(queue_name)
                self.blocked = obstacle
            if now - killed_at >= self._patience:
                self._kill_left()
                killed_at = now
            time.sleep(LOOK if now - began < TOLD_AFTER else LOOK_LATER)
        self.blocked = None
        return False

    def _obstacle(self) -> str | None:
        if not self._has_lock():
            return "Another worker of this slot, or a trainer of one, still runs."
        if left := self._own():
            return f"Trainers of the attempt before still run: {', '.join(str(process.pid) for process in left)}."
        self._started = self._trainers.started
        memory = self._read_memory()
        allowed = get_settings().foreign_memory_bytes
        if memory is None or memory.used_bytes <= allowed:
            return None
        holders = "; ".join(
            f"process {pid}" + (f" has {disks.as_text(size)}" if size is not None else "")
            for pid, size in sorted(memory.by_pid.items())
        )
        return (
            f"Others hold {disks.as_text(memory.used_bytes)} of the GPU's memory, more than the"
            f" {disks.as_text(allowed)} that they may{': ' + holders if holders else ''}."
        )

    def _has_lock(self) -> bool:
        """Whether no trainer lives that a worker of this slot has started before this one."""
        if not self._locked:
            with suppress(BlockingIOError):
                fcntl.flock(self._trainers.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
        return self._locked

    def _own(self) -> list[psutil.Process]:
        """What this process's trainers have left, but for those that stand by. Looked for once after each trainer: it
        takes a look at every process of the machine."""
        if self._trainers.started == self._started:
            return []
        me, standing_by = str(os.getpid()), self._trainers.standing_by
        return [process for process, parent in _trainers() if parent == me and _group(process) not in standing_by]

    def _orphans(self) -> list[psutil.Process]:
        """Who has the lock's file open, if no worker is among them but this one."""
        path = str(self._lock.resolve())
        holders = [process for process in psutil.process_iter() if process.pid != os.getpid() and _opens(process, path)]
        trainers = {process for process, _ in _trainers()}
        return holders if trainers.issuperset(holders) else []

    def _kill_left(self) -> None:
        for process in self._own() if self._locked else self._orphans():
            log.warning("process %d of a trainer has not ended in %.0f s; killing it", process.pid, self._patience)
            with suppress(psutil.Error):
                process.kill()


def _trainers() -> Iterator[tuple[psutil.Process, str]]:
    """Trainers of any worker and what they have started, each with the pid of that worker; no dead ones."""
    for process in psutil.process_iter(["environ"]):
        if (parent := (process.info["environ"] or {}).get(PARENT)) is not None:
            yield process, parent


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _opens(process: psutil.Process, path: str) -> bool:
    try:
        return any(file.path == path for file in process.open_files())
    except psutil.Error:
        return False
