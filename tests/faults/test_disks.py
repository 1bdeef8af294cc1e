"""Disks that run full under a job: it is set aside with what it has, and goes on once there is room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import running, small_disk, tiny
from tests.faults.test_worker import frozen, worker_of
from tests.running import Service, wait_for
from worker.checkpoints import MANIFEST

STEPS, SAVED_EVERY = 16, 4
SLOT = 11
MB = 1024**2


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    return service.upload(tiny.chat_rows(40))


@contextmanager
def only_a_worker_on_a_small_disk(service: Service, name: str) -> Iterator[Path]:
    """Its scratch folders are there; all else it shares with the one that is frozen meanwhile."""
    home = service.home / name  # below the service's, so that its processes are known as the service's
    shared = {
        "FINETUNED_STORAGE_URL": f"file://{service.home / 'storage'}",
        "FINETUNED_MODELS_DIR": str(service.home / "models"),
    }
    with (
        small_disk.mounted(home / "work", megabytes=64) as scratch,
        frozen(worker_of(service)),
        service.another_worker(SLOT, FINETUNED_HOME=str(home), **shared),
    ):
        yield scratch


def submit(service: Service, rows: str) -> str:
    return service.submit(rows, max_steps=STEPS, save_steps=SAVED_EVERY, batch_size=8, per_device_train_batch_size=1)


def checkpoints_on(scratch: Path, job_id: str) -> list[Path]:
    return list(scratch.glob(f"{job_id}-train/*/checkpoints/*/{MANIFEST}"))


def paused(service: Service, job_id: str) -> Any:
    """As the API says it, once it is."""

    def look() -> Any:
        job = service.get(f"/v1/fine_tuning/jobs/{job_id}")
        assert job["status"] not in ("failed", "succeeded", "cancelled"), job
        return job if job["status"] == "paused" else None

    return wait_for(look, 120, every=0.1)


def told(service: Service, job_id: str) -> list[str]:
    return [event.message for event in service.events(job_id)]


def losses(service: Service, job_id: str) -> list[tuple[int, float]]:
    """Of each step that was told, those that were done twice included."""
    known = [event.data for event in service.events(job_id) if "train_loss" in (event.data or {})]
    return [(data["step"], data["train_loss"]) for data in known]


@pytest.mark.fault(21)
@pytest.mark.long
def test_a_job_whose_checkpoint_has_no_room_waits_for_it_with_the_last_one(service: Service, rows: str) -> None:
    """Case 21."""
    with only_a_worker_on_a_small_disk(service, "small") as scratch:
        job_id = submit(service, rows)
        wait_for(lambda: checkpoints_on(scratch, job_id), 90)
        with small_disk.filled(scratch, free=4 * MB):
            job = paused(service, job_id)
            kept = sorted(int(path.parent.name.rsplit("-", 1)[-1]) for path in checkpoints_on(scratch, job_id))
            folders = [path for path in scratch.glob(f"{job_id}-train/*/checkpoints/*") if path.is_dir()]
        assert service.finished(job_id, 120).status == "succeeded"

    assert (job["paused_by"], job["queue"]["waiting_for"], job["error"]) == ("no_space", "no_space", None)
    assert "goes on by itself once there is room" in job["queue"]["message"]
    assert kept[0] >= SAVED_EVERY
    assert len(folders) == len(kept)
    first, *_, last = service.attempts(job_id)
    assert (first["outcome"], last["outcome"], last["resumed_from_step"]) == ("no_space", "succeeded", kept[-1])
    assert "There is room again: the job goes on" in told(service, job_id)
    straight = submit(service, rows)
    assert service.finished(straight, 120).status == "succeeded"
    expected = dict(losses(service, straight))
    found = losses(service, job_id)
    assert [loss for _, loss in found] == pytest.approx([expected[step] for step, _ in found], abs=1e-6)
    assert {step for step, _ in found} == set(range(1, STEPS + 1))
    assert len(service.results(job_id)) == 1


@pytest.mark.fault(22)
@pytest.mark.long
def test_a_result_that_the_storage_has_no_room_for_waits_for_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Case 22; and its checkpoints, which are told of once, keep no step waiting."""
    home = tmp_path_factory.mktemp("ft")
    tiny.make_base(home / "models" / "tiny")
    with (
        small_disk.mounted(home / "storage", megabytes=96) as storage,
        running.up(home) as service,
    ):
        job_id = submit(service, service.upload(tiny.chat_rows(40)))
        wait_for(lambda: checkpoints_on(home / "work", job_id), 90)
        with small_disk.filled(storage, free=1 * MB):
            job = paused(service, job_id)
            assert service.results(job_id) == []
            assert list((storage / "tmp").iterdir()) == []
            said = told(service, job_id)
        assert service.finished(job_id, 120).status == "succeeded"

        assert job["paused_by"] == "no_space"
        assert "the storage has" in job["queue"]["message"]
        assert len([one for one in said if one.startswith("The storage has no room for checkpoint-")]) == 1
        assert len([one for one in said if one.startswith("The storage has no room for the checkpoint at")]) == 1
        assert sorted(set(service.steps(job_id))) == list(range(1, STEPS + 1))
        assert [attempt["outcome"] for attempt in service.attempts(job_id)] == ["no_space", "succeeded"]
        assert service.attempts(job_id)[-1]["resumed_from_step"] == STEPS
        assert len(service.results(job_id)) == 1
