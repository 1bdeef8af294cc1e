"""What happens to a job when whoever works at it is killed, stopped, deaf, or told to end: real signals, all of it."""

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import psutil
import pytest

from tests import tiny
from tests.running import SHORT, Service, is_alive, wait_for

STEPS = 30
SAVED_EVERY = 5


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    """Id of a file with rows to train on."""
    return service.upload(tiny.chat_rows(40))


def submit(service: Service, rows: str, **hyperparameters: Any) -> str:
    """Post a job; returns its id. By default it trains for some seconds, and saves often."""
    given = {"max_steps": STEPS, "save_steps": SAVED_EVERY, "batch_size": 4, "per_device_train_batch_size": 1}
    return service.submit(rows, **given | hyperparameters)


def status_of(service: Service, job_id: str) -> str:
    return service.client().fine_tuning.jobs.retrieve(job_id).status


def wait_for_checkpoint(service: Service, job_id: str) -> int:
    """The step of the first checkpoint that the job tells of."""

    def told() -> int | None:
        steps = checkpoints(service, job_id)
        return steps[0] if steps else None

    return wait_for(told, 60, every=0.2)


def checkpoints(service: Service, job_id: str) -> list[int]:
    start = "Checkpoint created at step "
    messages = [event.message for event in service.events(job_id)]
    return [int(message.removeprefix(start)) for message in messages if message.startswith(start)]


def worker_of(service: Service) -> psutil.Process:
    """The Celery process of the only training slot, once its child is heard."""

    def heard() -> psutil.Process | None:
        worker = service.part("worker.main", "--slot 0")
        return worker if worker is not None and service.is_heard(worker) else None

    return wait_for(heard, 60, every=0.2)


def pool_child_of(worker: psutil.Process) -> psutil.Process:
    (child,) = worker.children()
    return child


@contextmanager
def frozen(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process that is there and does nothing."""
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    try:
        yield process
    finally:
        if is_alive(process):
            process.resume()


def assert_trained_once(service: Service, job_id: str, *, resumed_from: int, steps: int = STEPS) -> None:
    """The last attempt took up the training at a checkpoint and did each step left, and one result is registered."""
    told = service.steps(job_id)
    assert told[resumed_from - steps :] == list(range(resumed_from + 1, steps + 1))
    before = told[: resumed_from - steps]
    assert before == list(range(1, len(before) + 1))
    (result,) = service.results(job_id)
    job = service.client().fine_tuning.jobs.retrieve(job_id)
    assert result["id"] == job.fine_tuned_model
    assert result["metrics"]["steps"] == steps


@pytest.mark.fault(1, 2)
@pytest.mark.parametrize("victim", ["main process", pytest.param("pool child", marks=pytest.mark.long)])
def test_a_job_survives_its_killed_worker_and_goes_on_from_its_last_checkpoint(
    service: Service, rows: str, victim: str
) -> None:
    """Cases 1 and 2; and no trainer outlives its worker."""
    worker = worker_of(service)
    job_id = submit(service, rows)
    wait_for_checkpoint(service, job_id)
    child = pool_child_of(worker)
    trainers = child.children()
    assert service.trainer_of(job_id) in trainers

    (worker if victim == "main process" else child).kill()

    wait_for(lambda: not any(is_alive(process) for process in (child, *trainers)), 2)
    saved = checkpoints(service, job_id)[-1]
    assert service.finished(job_id).status == "succeeded"
    lost, second = service.attempts(job_id)
    assert (lost["outcome"], lost["error"]["code"]) == ("lease_expired", "worker_lost")
    assert second["outcome"] == "succeeded"
    assert saved <= second["resumed_from_step"] < STEPS
    assert_trained_once(service, job_id, resumed_from=second["resumed_from_step"])


@pytest.mark.fault(3)
@pytest.mark.long
def test_a_killed_trainer_is_replaced_at_once_by_the_same_worker(service: Service, rows: str) -> None:
    """Cases 3 and 4: a SIGKILL, a segmentation fault, the kernel short of memory, all look alike from outside."""
    worker = worker_of(service)
    child = pool_child_of(worker)
    job_id = submit(service, rows)
    wait_for_checkpoint(service, job_id)
    trainer = service.trainer_of(job_id)
    assert trainer is not None

    trainer.kill()

    assert service.finished(job_id).status == "succeeded"
    lost, second = service.attempts(job_id)
    assert lost["outcome"] == "failed"  # heard by the worker; a sweeper would have said lease_expired
    assert lost["error"]["code"] == "worker_lost"
    assert lost["error"]["message"] == "The trainer was killed by SIGKILL without a word."
    assert lost["error"]["suggestion"].startswith("Send the job again")
    assert lost["error"]["log_lines"]
    assert second["resumed_from_step"] > 0
    assert_trained_once(service, job_id, resumed_from=second["resumed_from_step"])
    assert is_alive(worker)
    assert is_alive(child)


@pytest.mark.fault(27, 28)
def test_a_running_job_is_cancelled_within_one_step(service: Service, rows: str) -> None:
    """Cases 27 and 28: cancelled twice is cancelled, and what has succeeded cannot be cancelled any more."""
    client = service.client()
    job_id = submit(service, rows, batch_size=64)  # a second a step, and more on a busy machine
    wait_for(lambda: service.steps(job_id), 60, every=0.2)
    trainer = service.trainer_of(job_id)
    assert trainer is not None

    step = service.steps(job_id)[-1]
    began = time.monotonic()
    answer = client.fine_tuning.jobs.cancel(job_id)
    took = time.monotonic() - began
    again = client.fine_tuning.jobs.cancel(job_id)

    assert took < 1
    assert answer.desired == again.desired == "cancel"  # type: ignore[attr-defined]  # a field of ours
    assert service.finished(job_id).status == "cancelled"
    assert not is_alive(trainer)
    assert service.steps(job_id)[-1] <= step + 1
    assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    assert [attempt["outcome"] for attempt in service.attempts(job_id)] == ["cancelled"]
    assert service.results(job_id) == []


@pytest.mark.fault(27)
@pytest.mark.long
def test_a_succeeded_job_cannot_be_cancelled(service: Service, rows: str) -> None:
    """Case 27."""
    job_id = submit(service, rows, max_steps=1)
    assert service.finished(job_id).status == "succeeded"

    with pytest.raises(openai.BadRequestError, match="has succeeded already"):
        service.client().fine_tuning.jobs.cancel(job_id)

    assert status_of(service, job_id) == "succeeded"


@pytest.mark.fault(31)
@pytest.mark.long
def test_a_worker_told_to_end_hands_its_job_on_with_no_step_lost(service: Service, rows: str) -> None:
    """Case 31: a rolling restart."""
    worker = worker_of(service)
    job_id = submit(service, rows)
    wait_for_checkpoint(service, job_id)

    worker.terminate()

    assert service.finished(job_id).status == "succeeded"
    assert not is_alive(worker)
    first, second = service.attempts(job_id)
    assert (first["outcome"], first["error"]) == ("interrupted", None)
    assert second["resumed_from_step"] > 0
    assert service.steps(job_id) == list(range(1, STEPS + 1))  # the checkpoint was of the last step, not an older one
    assert_trained_once(service, job_id, resumed_from=second["resumed_from_step"])
    with service.database() as database:
        counted = database.execute("SELECT failed_attempts FROM work WHERE subject = %s", [job_id]).fetchall()
    assert counted == [(0,), (0,)]


@pytest.mark.fault(23)
@pytest.mark.parametrize("place", ["after_manifest", "before_success"])
@pytest.mark.long
def test_a_published_result_is_registered_by_the_next_worker_and_not_trained_again(
    service: Service, rows: str, place: str
) -> None:
    """Case 23: a crash between the manifest and the commit of its registry row."""
    manifests = service.home / "storage" / "models"
    with frozen(worker_of(service)):
        with service.another_worker(7, FINETUNED_FAIL_AT=place) as doomed:
            job_id = submit(service, rows, max_steps=2)
            child = pool_child_of(doomed)
            wait_for(lambda: list((manifests / job_id).glob("*.json")), 60)
            wait_for(lambda: not is_alive(child))
        assert service.results(job_id) == []

    assert service.finished(job_id).status == "succeeded"
    outcomes = [attempt["outcome"] for attempt in service.attempts(job_id)]
    assert outcomes in (["lease_expired", "succeeded"], ["lease_expired", "lease_expired", "succeeded"])
    told = service.steps(job_id)  # of the last quarter of a second nothing, where the worker died in it
    assert len(told) == len(set(told))
    assert [path.name for path in (manifests / job_id).iterdir()] == ["000001.json"]
    assert len(service.results(job_id)) == 1


@pytest.mark.fault(11, 17)
@pytest.mark.long
def test_a_job_whose_ring_was_lost_is_rung_for_again(service: Service, rows: str) -> None:
    """Cases 11 and 17: the message popped by a worker that dies with it, and the broker emptied."""
    preparing = wait_for(lambda: service.part("worker.main", "--queue prepare"))
    sweeper = wait_for(lambda: service.part("worker.sweeper"))
    with frozen(sweeper):
        preparing.suspend()
        job_id = submit(service, rows, max_steps=1)
        with service.broker() as broker:
            wait_for(lambda: rings_sent(broker, since=0))
            preparing.kill()
            broker.flushall()

        def replaced() -> bool:
            new = service.part("worker.main", "--queue prepare")
            return new is not None and service.is_heard(new)

        wait_for(replaced, 60, every=0.2)
        assert status_of(service, job_id) == "validating_files"  # nobody knows

    assert service.finished(job_id).status == "succeeded"


def rings_sent(broker: Any, *, since: int) -> bool:
    rung = broker.info("commandstats").get("cmdstat_lpush", {"calls": 0})  # none yet
    return int(rung["calls"]) > since


@pytest.mark.fault(32)
@pytest.mark.long
def test_a_job_that_kills_every_trainer_is_failed_and_the_next_one_succeeds(service: Service, rows: str) -> None:
    """Case 32."""
    worker = worker_of(service)
    child = pool_child_of(worker)
    poisonous = submit(service, rows)

    def failed() -> Any:
        job = service.client().fine_tuning.jobs.retrieve(poisonous)
        if job.status == "running":
            for trainer in child.children():
                trainer.kill()
        return job if job.finished_at else None

    job = wait_for(failed, 60, every=0.2)

    assert (job.status, job.error.code) == ("failed", "worker_lost")
    assert job.error.message == "The trainer was killed by SIGKILL without a word."
    allowed = int(SHORT["FINETUNED_MAX_RETRIES"]) + 1
    assert [attempt["outcome"] for attempt in service.attempts(poisonous)] == ["failed"] * allowed
    assert service.results(poisonous) == []
    assert service.finished(submit(service, rows, max_steps=1)).status == "succeeded"
    assert is_alive(child)


@pytest.mark.fault(8, 9)
@pytest.mark.long
def test_a_worker_that_wakes_after_its_lease_writes_nothing_and_stops_its_trainer(service: Service, rows: str) -> None:
    """Cases 8 and 9: worker and trainer stop as a paused machine's would; the trainer wakes first, and trains on."""
    steps = 10 * STEPS
    worker_of(service)
    with service.another_worker(8):
        # Seldom saved: a trainer whose folder was taken over ends by itself at its next save.
        job_id = submit(service, rows, max_steps=steps, save_steps=2 * STEPS)
        wait_for_checkpoint(service, job_id)
        trainer = service.trainer_of(job_id)
        assert trainer is not None
        with frozen(wait_for(lambda: trainer.parent())) as zombie:
            with frozen(trainer):
                resumed_from = wait_for(lambda: second_attempt_resumed_from(service, job_id), 60, every=0.2)
                wait_for(lambda: checkpoints(service, job_id)[-1] > resumed_from, 60, every=0.2)
                worked = trainer.cpu_times().user
            wait_for(lambda: trainer.cpu_times().user > worked + 0.3, 120)  # some steps, told to nobody yet
        wait_for(lambda: not is_alive(trainer), 5)
        assert service.finished(job_id).status == "succeeded"
        assert is_alive(zombie)

    assert [attempt["outcome"] for attempt in service.attempts(job_id)] == ["lease_expired", "succeeded"]
    assert_trained_once(service, job_id, resumed_from=resumed_from, steps=steps)


def second_attempt_resumed_from(service: Service, job_id: str) -> int | None:
    attempts = service.attempts(job_id)
    return attempts[1]["resumed_from_step"] if len(attempts) == 2 else None


@pytest.mark.fault(29)
@pytest.mark.long
def test_a_trainer_deaf_to_its_cancel_is_killed_after_its_grace(service: Service, rows: str) -> None:
    """Case 29."""
    job_id = submit(service, rows)
    wait_for(lambda: service.steps(job_id), 60, every=0.2)
    trainer = service.trainer_of(job_id)
    assert trainer is not None
    trainer.send_signal(signal.SIGSTOP)

    began = time.monotonic()
    service.client().fine_tuning.jobs.cancel(job_id)
    wait_for(lambda: not is_alive(trainer), 20)

    assert time.monotonic() - began >= float(SHORT["FINETUNED_STOP_GRACE"])
    assert service.finished(job_id).status == "cancelled"


@pytest.mark.fault(10)
@pytest.mark.long
def test_nobody_trains_on_a_device_while_a_trainer_of_nobody_s_holds_it(service: Service, rows: str) -> None:
    """A lock that trainers inherit: here this process has it, as a trainer that has outlived its worker would."""
    (service.home / "locks").mkdir(exist_ok=True)
    with frozen(worker_of(service)), (service.home / "locks" / "cpu-21.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with service.another_worker(21):
            job_id = submit(service, rows, max_steps=1)
            wait_for(lambda: status_of(service, job_id) == "queued", 60, every=0.2)
            wait_for(lambda: blocked(service, 21), 60, every=0.2)
            assert status_of(service, job_id) == "queued"
            fcntl.flock(held, fcntl.LOCK_UN)
            assert service.finished(job_id).status == "succeeded"


def blocked(service: Service, slot: int) -> str | None:
    """Why a slot takes no work."""
    workers = service.get("/v1/workers")["data"]
    return next((worker["blocked"] for worker in workers if worker["id"].endswith(f":{slot}")), None)


@pytest.mark.fault(7)
@pytest.mark.long
def test_a_trainer_that_hangs_is_stopped_and_its_job_goes_on(service: Service, rows: str) -> None:
    """Case 7: silent for longer than twenty of its own steps, and deaf."""
    with frozen(worker_of(service)), service.another_worker(9, FINETUNED_HANG_TIMEOUT="10"):
        job_id = submit(service, rows)
        wait_for_checkpoint(service, job_id)
        trainer = service.trainer_of(job_id)
        assert trainer is not None
        trainer.suspend()
        wait_for(lambda: not is_alive(trainer), 60)
        assert service.finished(job_id).status == "succeeded"
    hung, *_, last = service.attempts(job_id)
    assert (hung["outcome"], hung["error"]["code"]) == ("failed", "hung")
    assert_trained_once(service, job_id, resumed_from=last["resumed_from_step"])
