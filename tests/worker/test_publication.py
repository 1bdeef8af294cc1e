"""Checkpoints on their way into the registry, while training goes on and when it is over."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import Project
from app.jobs import lifecycle, retention
from app.jobs import service as jobs
from app.jobs.models import JobCheckpoint
from app.jobs.prepared import Prepared
from app.registry import card
from app.registry import service as registry
from app.registry.manifest import TrainingReport
from app.settings import get_settings
from app.storage import Storage
from tests.away import waited_for
from tests.conftest import SetSettings
from tests.factories import make_file, make_manifest, make_queued_job, take
from tests.running import wait_for
from worker import checkpoints, messages
from worker.publication import CheckpointPublisher, Origin

Offer = Callable[..., Path]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path / 'storage'}")


@pytest.fixture
def origin(session: Session, project: Project) -> Origin:
    with session.begin():
        file = make_file(session, project)
        job = make_queued_job(session, project, training_file=file.id)
        claim = take(session)
        session.refresh(job)
        return Origin(claim, job, Prepared.model_validate(job.prepared), file, project.name)


@pytest.fixture
def offer(tmp_path: Path, session: Session, origin: Origin) -> Offer:
    """Does what the trainer does at a checkpoint; a `spoilt` one lacks what its row needs.

    `valid_loss`: where its step was evaluated.
    """
    with session.begin():
        report = make_manifest(session, origin.claim).report.model_dump()

    def make(step: int, *, spoilt: bool = False, valid_loss: float | None = None) -> Path:
        folder = tmp_path / messages.OFFERED / f"checkpoint-{step}"
        arriving = folder.with_suffix(".arriving")
        arriving.mkdir(parents=True)
        (arriving / "adapter_model.safetensors").write_bytes(b"weights of step %d" % step)
        measured = {"checkpoint": {"step": step, "train_loss": 1.0, "valid_loss": valid_loss}}
        metrics = report | ({} if spoilt else measured)
        (arriving / "metrics.json").write_text(json.dumps(metrics))
        (arriving / "job.json").write_text(origin.job.current_spec.model_dump_json())
        return arriving.rename(folder)

    return make


def entered(session: Session) -> list[int]:
    with session.begin():
        return list(session.scalars(select(JobCheckpoint.step).order_by(JobCheckpoint.step)))


def test_the_last_checkpoint_of_a_job_waits_for_a_database_that_is_away(
    session: Session, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    session.close()
    publisher = CheckpointPublisher(tmp_path, storage, origin)
    publisher.__enter__()
    publisher.is_last_chance = True
    with waited_for(publisher.__exit__):
        folder = offer(5)
    assert entered(session) == [5]
    assert not folder.exists()


def test_a_storage_that_is_away_is_waited_for_only_where_no_attempt_follows(
    session: Session, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    folder = offer(5)
    blobs = tmp_path / "storage" / "blobs"
    blobs.write_text("no folder")
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert (folder.exists(), entered(session)) == (True, [])

    publisher = CheckpointPublisher(tmp_path, storage, origin)
    threading.Timer(0.5, blobs.unlink).start()
    with publisher:
        publisher.is_last_chance = True
    assert (folder.exists(), entered(session)) == (False, [5])


def test_a_checkpoint_that_cannot_be_published_is_in_nobodys_way(
    session: Session, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    began = time.monotonic()
    with CheckpointPublisher(tmp_path, storage, origin) as publisher:
        for step in (5, 10, 15):
            folder = offer(step, spoilt=step == 5)
            publisher.hear(messages.Checkpoint(step, folder.name))
        wait_for(lambda: entered(session) == [10, 15], 10, every=0.05)
        publisher.is_last_chance = True
    assert entered(session) == [10, 15]
    assert time.monotonic() - began < 20  # nobody waits for what no time mends


def test_the_best_checkpoint_is_kept_beside_the_newest_and_both_are_labelled(
    session: Session, project: Project, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    losses = {5: 2.0, 10: 1.0, 15: None, 20: 1.0, 25: 1.5, 30: 1.25}
    for step, loss in losses.items():
        offer(step, valid_loss=loss)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    with session.begin():
        registry.keep_checkpoints(session, origin.job.id, newest=2)
    assert shown(session, project, origin.job.id) == {30: ["last"], 25: [], 10: ["best"]}

    with session.begin():
        report = {"published": "best", "best": {"step": 25, "eval_loss": 0.5}, "last": {"step": 30, "eval_loss": 1.25}}
        manifest = make_manifest(session, origin.claim)
        measured = TrainingReport.model_validate(manifest.report.model_dump() | report)
        manifest = manifest.model_copy(update={"report": measured})
        result = registry.register(session, manifest, manifest_sha256="6" * 64)
        lifecycle.succeed(session, origin.claim, result, trained_tokens=1, result_files=[])
    # The result knows better: that step was evaluated only after its checkpoint was published.
    assert shown(session, project, origin.job.id) == {30: ["last"], 25: ["best"], 10: []}
    assert "| weights | of step 25 (0.5000), the best by validation loss; the last was step 30 (1.2500) |" in (
        card.render(manifest)
    )


def test_every_nth_checkpoint_is_kept_beside_the_best_and_the_last(
    session: Session,
    project: Project,
    tmp_path: Path,
    storage: Storage,
    origin: Origin,
    offer: Offer,
    set_settings: SetSettings,
) -> None:
    set_settings(checkpoints_kept=1, checkpoints_kept_every=20)
    losses = {5: 1.0, 10: 2.0, 20: 2.0, 25: 2.0, 30: 2.0, 40: 2.0, 45: 2.0}
    for step, loss in losses.items():
        offer(step, valid_loss=loss)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert shown(session, project, origin.job.id) == {45: ["last"], 40: [], 20: [], 5: ["best"]}


def shown(session: Session, project: Project, job_id: str) -> dict[int, list[str]]:
    with session.begin():
        job = jobs.get(session, project, job_id)
        page = jobs.checkpoints(session, job, after=None, limit=10)
        labels = jobs.labels(session, job)
        return {row.step: [*labels[row.step]] for row in page.rows}


def test_the_last_checkpoint_may_be_the_best_and_without_evaluations_there_is_no_best(
    session: Session, project: Project, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    offer(5)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert shown(session, project, origin.job.id) == {5: ["last"]}
    offer(10, valid_loss=1.0)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert shown(session, project, origin.job.id) == {10: ["best", "last"], 5: []}


def test_a_checkpoint_that_was_deleted_does_not_come_back_when_its_step_is_done_again(
    session: Session, project: Project, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    offer(5)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    with session.begin():
        registry.delete(session, project, session.scalars(select(JobCheckpoint.model)).one())
    with session.begin():
        retention.delete_unused_blobs(session, storage, age=timedelta(0))
    assert entered(session) == []
    again, other = offer(5), offer(10)
    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert entered(session) == [10]
    assert not again.exists()
    assert not other.exists()


@pytest.mark.fault(22)
def test_checkpoints_without_room_in_the_storage_are_told_of_once_and_waited_for_by_nobody(
    session: Session, tmp_path: Path, storage: Storage, origin: Origin, offer: Offer
) -> None:
    kept, gone = offer(20), offer(10)
    checkpoints.path_of(tmp_path / "checkpoints", 20).mkdir(parents=True)  # whose files the kept one has
    told: list[str] = []
    began = time.monotonic()
    with CheckpointPublisher(tmp_path, storage, origin, warn=told.append, reserve=2**60) as publisher:
        publisher.is_last_chance = True
        publisher.hear(messages.Checkpoint(10, gone.name))
        wait_for(lambda: told)
        publisher.hear(messages.Checkpoint(20, kept.name))
    assert time.monotonic() - began < get_settings().database_patience.total_seconds() / 2
    assert told == ["The storage has no room for the checkpoint at step 10: it is not published for now"]
    assert (kept.exists(), gone.exists(), entered(session)) == (True, False, [])

    with CheckpointPublisher(tmp_path, storage, origin):
        pass
    assert entered(session) == [20]
