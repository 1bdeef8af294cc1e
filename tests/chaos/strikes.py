"""How a kill of the plan is done to a running service."""

import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil
import redis

from tests.chaos.plan import SLOTS, How, Kill, Victim
from tests.running import Service, is_alive, standard_output

PATIENCE = 60.0
"""Seconds that a victim is waited for: it may be on its way, or nobody may train just now."""
PARTS = {
    Victim.PREPARER: ("worker.main", "--queue prepare"),
    Victim.API: ("app.cli.api",),
    Victim.BROKER: ("valkey-server",),
    Victim.POSTGRES: ("postgres",),
    Victim.SWEEPER: ("worker.sweeper",),
}
SIGNALS = {How.KILL: signal.SIGKILL, How.END: signal.SIGTERM, How.FAST: signal.SIGINT, How.SLEEP: signal.SIGSTOP}
TRAINS = re.compile(r"/(ftjob-\w+)-train/")


@dataclass(frozen=True, slots=True)
class Strike:
    """A kill that was done."""

    kill: Kill
    at: float
    """Unix seconds."""
    job_id: str | None
    """Of the job that was trained there."""


class Striker:
    """Does one after the other. Who is stopped wakes from a thread of its own, whatever is struck meanwhile."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._alarms: list[threading.Timer] = []

    def strike(self, kill: Kill) -> Strike | None:
        """None where there was no such victim for so long. One who shall have a job is of any slot that has one."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for slot in (kill.slot, *(other for other in range(SLOTS) if other != kill.slot and kill.in_a_job)):
                found = replace(kill, slot=slot)
                with suppress(psutil.NoSuchProcess, redis.ConnectionError, redis.TimeoutError):
                    if self._victim(found) is not None:
                        time.sleep(kill.after)
                        if (victim := self._victim(found)) is not None:
                            return self._do(found, victim)
            time.sleep(0.2)
        return None

    def wake(self) -> None:
        """Wait until nobody sleeps any more."""
        for alarm in self._alarms:
            alarm.join()

    def _victim(self, kill: Kill) -> psutil.Process | None:
        if kill.in_a_job and self._trainer(kill.slot) is None:
            return None
        match kill.victim:
            case Victim.WORKER:
                return self._worker(kill.slot)
            case Victim.CHILD:
                return self._child(kill.slot)
            case Victim.TRAINER:
                return self._trainer(kill.slot)
            case _:
                return self._service.part(*PARTS[kill.victim])

    def _do(self, kill: Kill, victim: psutil.Process) -> Strike:
        strike = Strike(kill, time.time(), self._trained_by(kill.slot) if kill.victim in OF_SLOTS else None)
        if kill.how is How.EMPTY:
            with self._service.broker() as broker:
                broker.flushall()
            return strike
        victim.send_signal(SIGNALS[kill.how])
        if kill.how is How.SLEEP:
            alarm = threading.Timer(kill.asleep, _wake, [victim])
            alarm.start()
            self._alarms.append(alarm)
        return strike

    def _worker(self, slot: int) -> psutil.Process | None:
        return self._service.part("worker.main", f"--slot {slot}")

    def _child(self, slot: int) -> psutil.Process | None:
        worker = self._worker(slot)
        return next(filter(is_alive, worker.children()), None) if worker is not None else None

    def _trainer(self, slot: int) -> psutil.Process | None:
        """One that has a job, not one that stands by."""
        child = self._child(slot)
        trainers = child.children() if child is not None else []
        return next((one for one in trainers if is_alive(one) and TRAINS.search(standard_output(one))), None)

    def _trained_by(self, slot: int) -> str | None:
        trainer = self._trainer(slot)
        found = TRAINS.search(standard_output(trainer)) if trainer is not None else None
        return found[1] if found else None


OF_SLOTS = (Victim.TRAINER, Victim.WORKER, Victim.CHILD)


def _wake(victim: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # killed in its sleep
        victim.resume()
