"""A slot takes work once its device is free. A GPU's memory is simulated, but for the tests that are marked `gpu`."""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs.models import Job
from app.settings import get_settings
from app.work.models import Attempt, Work
from app.work.status import WorkKind
from tests import running, tiny
from tests.conftest import SetSettings
from tests.factories import WHO, make_queued_job
from tests.running import wait_for
from worker.devices import Device, Memory, Meter, ReadMemory, device_of
from worker.runner import Slot
from worker.slots import Occupied, Place
from worker.standby import PARENT, Trainers
from worker.vacancy import Vacancy

GB = 10**9
QUEUE = "gpu-24"


class SimulatedMemory:
    """Reports of a GPU's memory what a test says: there is no GPU."""

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory

    def __call__(self) -> Memory | None:
        return self.memory


@pytest.fixture(autouse=True)
def _quickly(set_settings: SetSettings, tmp_path: Path) -> None:
    """No trainer is started: what is shown is that the work was taken."""
    set_settings(home=tmp_path, standby=False, heartbeat_interval=0.1)


@pytest.fixture
def job(session: Session, project: Project) -> Job:
    """A job that waits for a GPU. An attempt at it fails at once, for its base model is not there."""
    with session.begin():
        job = make_queued_job(session, project)
        session.execute(update(Job).values(queue=QUEUE))
        session.execute(update(Work).where(Work.kind == WorkKind.TRAIN).values(queue=QUEUE))
    return job


@contextmanager
def working(slot: Slot | Occupied) -> Iterator[threading.Thread]:
    """A slot that has heard a ring; it is to be done when this ends."""
    thread = threading.Thread(target=slot.run, args=[QUEUE], daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def occupied(device: Device, read_memory: ReadMemory | None) -> Iterator[Occupied]:
    """A place that is heard of by others."""
    place = Occupied(Place(WHO, QUEUE, device, "simulated"), read_memory=read_memory)
    place.enter()
    try:
        yield place
    finally:
        place.leave()


def attempts(session: Session) -> int:
    with session.begin():
        return session.scalar(select(func.count()).where(Attempt.work_id == Work.id, Work.kind == WorkKind.TRAIN)) or 0


def blocked(client: TestClient) -> str | None:
    """Why the only worker takes no work."""
    workers: list[dict[str, Any]] = client.get("/v1/workers").json()["data"]
    return workers[0]["blocked"] if workers else None


@pytest.mark.fault(10)
def test_no_work_is_taken_while_others_hold_the_memory_of_the_gpu(
    session: Session, client: TestClient, job: Job, set_settings: SetSettings
) -> None:
    """Case 10, simulated. Others see why, another slot is rung for, and it goes on by itself."""
    set_settings(foreign_memory_bytes=2 * GB)
    memory = SimulatedMemory(Memory(20 * GB, {4711: 19 * GB, 4712: None}))
    device = Device("cuda", "simulated", 24 * GB, "GPU-simulated")
    with redis.Redis.from_url(get_settings().broker_url.replace("redis+socket", "unix")) as broker:
        broker.delete(QUEUE)
        with occupied(device, memory) as place, working(place) as thread:
            told = wait_for(lambda: blocked(client), every=0.1)
            assert told == (
                "Others hold 20.0 GB of the GPU's memory, more than the 2.0 GB that they may:"
                " process 4711 has 19.0 GB; process 4712."
            )
            queue = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()["queue"]
            assert queue["waiting_for"] == "worker"
            assert queue["message"] == f"No slot of {QUEUE} takes work just now. {told}"
            wait_for(lambda: broker.llen(QUEUE))
            memory.memory = Memory(2 * GB + 1, {})
            wait_for(lambda: "2.0 GB of" in (blocked(client) or ""), every=0.1)
            assert (attempts(session), thread.is_alive()) == (0, True)

            memory.memory = Memory(2 * GB, {5: 2 * GB})
            wait_for(lambda: attempts(session) == 1, every=0.1)
            wait_for(lambda: blocked(client) is None, every=0.1)


@pytest.mark.parametrize(
    "memory", [None, Memory(400 * 1024**2, {1: None})], ids=["one that does not tell", "that of a desktop"]
)
def test_a_gpu_that_tells_nothing_and_a_desktop_hold_nobody_up(
    session: Session, job: Job, memory: Memory | None
) -> None:
    with occupied(Device("cuda", "simulated", GB, "GPU-simulated"), SimulatedMemory(memory)) as place, working(place):
        pass
    assert attempts(session) == 1


@contextmanager
def sleeping(*, lock: int | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that no trainer's process group has."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        pass_fds=[] if lock is None else [lock],
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        said.readline()
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def a_slot(folder: Path, patience: float) -> Iterator[tuple[Slot, Trainers]]:
    lock = folder / "slot.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    trainers = Trainers(Device.cpu(), "cpu-0", descriptor)
    yield Slot(WHO, trainers, Vacancy(lock, trainers, lambda: None, patience=patience)), trainers
    os.close(descriptor)


@pytest.mark.fault(10)
def test_what_a_trainer_has_left_is_waited_for_and_then_killed(session: Session, job: Job, tmp_path: Path) -> None:
    """On a CPU too. Here a process that has left its trainer's group, as nothing of ours does."""
    ours: dict[str, Any] = {PARENT: str(os.getpid())}
    with a_slot(tmp_path, patience=4) as (slot, trainers), sleeping(**ours) as left:
        trainers.start(WorkKind.TRAIN, tmp_path).close()
        with working(slot):
            told = wait_for(lambda: slot.vacancy.blocked)
            assert told == f"Trainers of the attempt before still run: {left.pid}."
            assert (attempts(session), left.poll()) == (0, None)
            wait_for(lambda: left.poll() is not None)
        assert attempts(session) == 1


@pytest.mark.fault(10)
@pytest.mark.parametrize("is_orphan", [True, False], ids=["of a trainer", "a worker"])
def test_who_has_the_lock_is_killed_only_if_no_worker_has_it(
    session: Session, job: Job, tmp_path: Path, is_orphan: bool
) -> None:
    """What a killed worker's trainer has left may be killed, and another worker of the slot may not."""
    with a_slot(tmp_path, patience=0.2) as (slot, _):
        before = os.open(tmp_path / "slot.lock", os.O_RDWR)
        fcntl.flock(before, fcntl.LOCK_EX)
        with sleeping(lock=before, **({PARENT: "1"} if is_orphan else {})) as holder:
            os.close(before)
            with working(slot):
                if is_orphan:
                    wait_for(lambda: holder.poll() is not None)
                else:
                    told = wait_for(lambda: slot.vacancy.blocked)  # later than it would have been killed
                    assert told == "Another worker of this slot, or a trainer of one, still runs."
                    assert (attempts(session), holder.poll()) == (0, None)
                    holder.kill()
    assert attempts(session) == 1


ALLOCATE = """
import sys, torch
held = torch.ones(4 * 1024**3, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.gpu
def test_no_work_is_taken_while_another_process_holds_the_gpu(
    session: Session, client: TestClient, job: Job, set_settings: SetSettings
) -> None:
    set_settings(foreign_memory_bytes=used(device_of(0)) + GB)  # this process may have some of it
    notebook = subprocess.Popen(
        [sys.executable, "-c", ALLOCATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert notebook.stdout is not None
    with notebook:
        assert notebook.stdout.readline() == b"held\n"
        with occupied(device_of(0), None) as place, working(place):
            wait_for(lambda: "of the GPU's memory" in (blocked(client) or ""), every=0.1)
            assert attempts(session) == 0
            notebook.kill()
            wait_for(lambda: attempts(session) == 1, 15, every=0.1)


@pytest.mark.gpu
def test_a_cancelled_job_gives_the_memory_of_its_gpu_back() -> None:
    """Within 15 s; and the worker takes the next job, as it looks whether it has."""
    before = used(device_of(0))
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        with running.up(Path(folder), FINETUNED_FOREIGN_MEMORY_BYTES=str(before + GB // 10)) as service:
            rows = service.upload(tiny.chat_rows(40))
            job_id = service.submit(rows, max_steps=100_000)
            wait_for(lambda: service.steps(job_id), 120, every=0.2)
            assert used(device_of(0)) > before + GB // 10

            service.client().fine_tuning.jobs.cancel(job_id)
            wait_for(lambda: used(device_of(0)) <= before + GB // 10, 15, every=0.1)

            assert service.finished(service.submit(rows, max_steps=2)).status == "succeeded"


def used(device: Device) -> int:
    """Bytes of a GPU's memory, by its own account."""
    memory = Meter(device).memory()
    assert memory is not None
    return memory.used_bytes
