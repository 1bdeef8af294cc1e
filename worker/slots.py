"""This process's slot: made in the pool child after its fork, with everything that must not be shared across one."""

import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.db import new_session
from app.monitoring import traces
from app.queue import PREPARE
from app.settings import get_settings
from app.work import service
from app.work.lifecycle import Who
from app.work.status import WorkKind
from worker import room, workspace
from worker.devices import Device, Meter, ReadMemory
from worker.runner import Slot
from worker.standby import Trainers
from worker.vacancy import Vacancy

log = logging.getLogger(__name__)

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
PRUNE_INTERVAL = 600.0
"""Seconds between two looks at old scratch folders."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker was started as."""

    who: Who
    queue: str
    device: Device
    lock_name: str
    """Of a GPU its UUID, so that two workers cannot share it whatever their slots are called."""


class Occupied:
    """A place with a process in it: heard of by others, its trainers ready, its lock held once it has worked.

    `read_memory`: of the place's device; None: by NVML.
    """

    def __init__(self, place: Place, *, read_memory: ReadMemory | None = None) -> None:
        self._place = place
        self._over = threading.Event()
        lock = _lock_file(place.lock_name)
        self._trainers = Trainers(place.device, place.lock_name, os.open(lock, LOCK_FLAGS, 0o600))
        self._vacancy = Vacancy(lock, self._trainers, read_memory or Meter(place.device).memory)
        self._slot = Slot(place.who, self._trainers, self._vacancy)
        self._presence = threading.Thread(target=self._be_heard, name="presence", daemon=True)

    def enter(self) -> None:
        """Show up, and start the first trainers ahead. Called by the thread that will run the work: its trainers die
        with it."""
        self._presence.start()
        preparing = [WorkKind.PREPARE, WorkKind.PLAN] if get_settings().dry_runs else [WorkKind.PREPARE]
        for kind in preparing if self._place.queue == PREPARE else [WorkKind.TRAIN]:
            self._trainers.stand_by(kind)

    def run(self, queue_name: str) -> None:
        """Do the work of a queue."""
        try:
            self._slot.run(queue_name)
        except SQLAlchemyError as error:
            log.warning("the database does not answer: %s; the sweeper rings for what waits", error)

    def leave(self) -> None:
        """End in order: no standby left, and struck off the list of workers."""
        self._over.set()
        self._trainers.close()
        self._presence.join(timeout=5)
        traces.close()

    def _be_heard(self) -> None:
        traces.sender()  # loaded in this thread: Celery kills a child that takes 4 s to start
        interval = get_settings().heartbeat_interval.total_seconds()
        meter = Meter(self._place.device)
        prune_at = 0.0
        while not self._over.is_set():
            self._hear(meter)
            if time.monotonic() >= prune_at:
                self._prune()
                prune_at = time.monotonic() + PRUNE_INTERVAL
            self._over.wait(interval)
        try:
            with new_session() as session, session.begin():
                service.forget(session, self._place.who.worker_id)
        except SQLAlchemyError as error:
            log.info("not struck off the list of workers: %s", error)

    def _hear(self, meter: Meter) -> None:
        usage: dict[str, Any] = meter.read() | room.reported()
        if (blocked := self._vacancy.blocked) is not None:
            usage["blocked"] = blocked
        try:
            with new_session() as session, session.begin():
                service.hear(session, self._place.who, queue=self._place.queue, pid=os.getpid(), usage=usage)
        except SQLAlchemyError as error:
            log.warning("not heard: %s", error)

    def _prune(self) -> None:
        try:
            workspace.prune(get_settings().scratch_retention)
        except (SQLAlchemyError, OSError) as error:
            log.warning("scratch folders not pruned: %s", error)


def _lock_file(name: str) -> Path:
    folder = get_settings().home.absolute() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"
