"""A job that goes on where nothing of it is: a second worker with a home, and so with scratch folders, of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import tiny
from tests.faults.test_worker import frozen, worker_of
from tests.running import Service, wait_for

STEPS, SAVED_EVERY = 24, 4
SLOT = 9


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    return service.upload(tiny.chat_rows(40))


@contextlib.contextmanager
def only_a_worker_elsewhere(service: Service, folder: Path) -> Iterator[psutil.Process]:
    """It shares the database, the broker, the storage and the bases with the one that is frozen meanwhile."""
    shared = {
        "FINETUNED_STORAGE_URL": f"file://{service.home / 'storage'}",
        "FINETUNED_MODELS_DIR": str(service.home / "models"),
    }
    # Below the service's, so that its processes are known as the service's.
    home = service.home / folder.name
    with frozen(worker_of(service)), service.another_worker(SLOT, FINETUNED_HOME=str(home), **shared) as worker:
        yield worker


def submit(service: Service, rows: str) -> str:
    return service.submit(
        rows,
        max_steps=STEPS,
        save_steps=SAVED_EVERY,
        batch_size=16,
        per_device_train_batch_size=1,
    )


def losses(service: Service, job_id: str) -> dict[int, float]:
    told = [event.data for event in service.events(job_id) if "train_loss" in (event.data or {})]
    return {data["step"]: data["train_loss"] for data in told}


def stored(service: Service, job_id: str) -> list[tuple[int, list[dict[str, Any]]]]:
    """The steps whose state is in the storage, newest first, with its files."""
    with service.database() as database:
        return database.execute(
            "SELECT step, files FROM resume_states WHERE job_id = %s AND manifest_sha256 IS NOT NULL"
            " AND deleted_at IS NULL ORDER BY step DESC",
            [job_id],
        ).fetchall()


@pytest.mark.fault(24, 30)
@pytest.mark.long
def test_a_paused_job_goes_on_on_another_worker_as_if_nothing_had_been(
    service: Service, rows: str, tmp_path: Path
) -> None:
    """Case 30; and case 24, for one byte of the newest checkpoint that it could go on from."""
    client = service.client()
    worker_of(service)
    moved = submit(service, rows)
    wait_for(lambda: stored(service, moved), 150, every=0.1)
    client.fine_tuning.jobs.pause(moved)
    wait_for(lambda: service.status(moved) == "paused", 60, every=0.1)
    (newest, files), (before, _) = stored(service, moved)
    assert service.steps(moved)[-1] == newest < STEPS
    optimizer = next(file["sha256"] for file in files if file["name"] == "optimizer.pt")
    blob = service.home / "storage" / "blobs" / "sha256" / optimizer[:2] / optimizer
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)

    with only_a_worker_elsewhere(service, tmp_path):
        client.fine_tuning.jobs.resume(moved)
        assert service.finished(moved, 200).status == "succeeded"
    straight = submit(service, rows)
    assert service.finished(straight).status == "succeeded"

    first, second = service.attempts(moved)
    assert (first["outcome"], second["outcome"], second["resumed_from_step"]) == ("paused", "succeeded", before)
    told = [event.message for event in service.events(moved)]
    assert any(said.startswith(f"The stored checkpoint at step {newest} is not as it was") for said in told)
    assert any(said.startswith(f"The checkpoint at step {before} was fetched from the storage") for said in told)
    assert service.steps(moved) == [*range(1, newest + 1), *range(before + 1, STEPS + 1)]
    assert losses(service, moved) == {
        step: pytest.approx(loss, abs=1e-6) for step, loss in losses(service, straight).items()
    }
    assert len(service.results(moved)) == 1
    wait_for(lambda: not stored(service, moved), 60, every=0.2)
    assert not blob.exists()
