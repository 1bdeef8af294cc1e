"""Checkpoints that travel through the storage: stored while training goes on, found by the next attempt, let go."""

import hashlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.files import service as files
from app.jobs import lifecycle, resume_states
from app.jobs.models import Job, ResumeState
from app.settings import get_settings
from app.storage import CHUNK, Blob, Incoming, Storage, blob_key, get_storage
from app.work.lifecycle import Claim
from tests.conftest import SetSettings
from tests.factories import make_file, make_queued_job, sweep_blobs, take
from tests.running import wait_for
from worker import checkpoints, messages, resuming, shutdown
from worker.checkpoints import Checkpoint, Course
from worker.lease import Lease, Wish
from worker.messages import AnyMessage
from worker.resuming import Stored
from worker.uploading import CheckpointUploader

COURSE: Course = {"training rows": "0" * 64, "learning_rate": 1e-4, "tuning": {"type": "lora", "r": 8}}
OPTIMIZER = "optimizer.pt"


@pytest.fixture
def claim(session: Session, project: Project) -> Claim:
    with session.begin():
        make_queued_job(session, project)
        return take(session)


@pytest.fixture
def storage(tmp_path: Path, set_settings: SetSettings) -> Iterator[Storage]:
    """Of this test alone."""
    set_settings(storage_url=f"file://{tmp_path / 'storage'}")
    get_storage.cache_clear()
    yield get_storage()
    get_storage.cache_clear()


def save(work_dir: Path, step: int, *, best: int | None = None, course: Course = COURSE) -> Checkpoint:
    """What the trainer does."""
    path = checkpoints.path_of(work_dir / "checkpoints", step)
    path.mkdir(parents=True)
    (path / OPTIMIZER).write_bytes(b"state of step %d" % step)
    (path / "tokenizer.json").write_text("the same at each step")
    saved = Checkpoint(path, step=step, total_steps=100, tokens=step, seconds=0.5, best=best, course=course)
    checkpoints.commit(saved)
    return saved


def store(claim: Claim, work_dir: Path, storage: Storage, stored: Stored | None = None) -> None:
    """Until there is nothing left to store."""
    with CheckpointUploader(claim, work_dir, storage, stored or Stored(), warn=pytest.fail) as uploader:
        uploader.finish(Lease(claim))


def go_on(
    claim: Claim, work_dir: Path, storage: Storage, course: Course = COURSE
) -> tuple[Checkpoint | None, Stored, list[str]]:
    """What the next attempt begins with, and what the job's events say of it."""
    said: list[AnyMessage] = []
    folder = work_dir / "checkpoints"
    stored = resuming.fetch_newest(claim, Lease(claim), folder, course, storage, said.append)
    told = [message.message for message in said if isinstance(message, messages.Notice)]
    return checkpoints.newest_verified(folder, course, told.append), stored, told


def damage(storage: Storage, content: bytes, how: str) -> None:
    """What a disk may do to a blob of that content."""
    path = Path(storage._path(blob_key(storage.put_bytes(content).sha256)))
    match how:
        case "flipped":
            path.write_bytes(b"S" + content[1:])
        case "truncated":
            path.write_bytes(content[:-1])
        case _:
            path.unlink()


def has(storage: Storage, content: bytes) -> bool:
    return storage.has(hashlib.sha256(content).hexdigest(), len(content))


def steps(session: Session) -> dict[int, bool]:
    """Of what the database knows to be stored: whether it is used."""
    with session.begin():
        return {state.step: state.deleted_at is None for state in session.scalars(select(ResumeState))}


def test_a_worker_with_an_empty_disk_goes_on_from_the_newest(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    save(tmp_path / "here", 10)
    newest = save(tmp_path / "here", 20)
    store(claim, tmp_path / "here", storage)

    found, stored, told = go_on(claim, tmp_path / "there", storage)

    assert found is not None
    assert (found.step, found.tokens, found.course) == (20, 20, COURSE)
    assert (found.path / OPTIMIZER).read_bytes() == (newest.path / OPTIMIZER).read_bytes()
    assert stored == Stored({20})
    assert told == ["The checkpoint at step 20 was fetched from the storage (0.0 MB)"]


def test_what_is_on_the_disk_is_not_fetched_unless_there_is_a_newer_one(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    save(tmp_path / "here", 10)
    store(claim, tmp_path / "here", storage)
    save(tmp_path / "there", 20)
    found, _, told = go_on(claim, tmp_path / "there", storage)
    assert (found.step if found else None, told) == (20, [])

    (tmp_path / "there" / "checkpoints" / "checkpoint-20" / OPTIMIZER).write_bytes(b"torn")
    found, _, told = go_on(claim, tmp_path / "there", storage)
    assert found is not None
    assert found.step == 10
    assert told[0] == "The checkpoint at step 20 is torn, and is not used"


def test_the_two_newest_and_the_best_are_kept_and_the_bytes_of_others_go(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    for step, best in ((10, None), (20, 20), (30, 20), (40, 20), (50, 20)):
        save(tmp_path, step, best=best)
        store(claim, tmp_path, storage, Stored(set(steps(session))))
    assert steps(session) == {10: False, 20: True, 30: False, 40: True, 50: True}

    sweep_blobs(session, age=timedelta(0))

    assert list(steps(session)) == [20, 40, 50]
    assert [has(storage, b"state of step %d" % step) for step in (10, 20, 30, 40, 50)] == [0, 1, 0, 1, 1]
    assert has(storage, b"the same at each step")
    found, _, _ = go_on(claim, tmp_path / "there", storage)
    assert found is not None
    assert (found.step, found.best) == (50, 20)
    assert checkpoints.verified(tmp_path / "there" / "checkpoints", 20) is not None


def test_the_newest_and_the_best_are_stored_where_saving_is_faster(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    for step, best in ((10, None), (20, 20), (30, 20)):
        save(tmp_path, step, best=best)
    store(claim, tmp_path, storage)
    assert steps(session) == {30: True, 20: True}


@pytest.mark.fault(24)
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_stored_checkpoint_that_was_altered_is_told_of_and_the_one_before_is_used(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path, how: str
) -> None:
    """Case 24; and saved once more, it is whole again."""
    for step in (10, 20):
        save(tmp_path / "here", step)
        store(claim, tmp_path / "here", storage, Stored(set(steps(session))))
    damage(storage, b"state of step 20", how)

    found, stored, told = go_on(claim, tmp_path / "there", storage)

    assert found is not None
    assert found.step == 10
    assert told[0].startswith("The stored checkpoint at step 20 is not as it was, and is not used: blob ")
    assert steps(session) == {10: True, 20: False}
    assert stored.steps == {10}

    save(tmp_path / "there", 20)
    store(claim, tmp_path / "there", storage, stored)
    found, _, told = go_on(claim, tmp_path / "elsewhere", storage)
    assert found is not None
    assert (found.step, len(told)) == (20, 1)


def test_a_manifest_that_is_not_the_one_in_the_database_is_not_believed(
    claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    saved = save(tmp_path / "here", 10)
    store(claim, tmp_path / "here", storage)
    manifest = checkpoints.read_manifest(saved.path)
    storage.write_manifest(f"resume/{claim.subject}/000000010-000001.json", manifest | {"step": 90})

    found, _, told = go_on(claim, tmp_path / "there", storage)

    assert found is None
    assert "has other bytes than its digest says" in told[0]


@pytest.mark.parametrize("where", ["stored", "here"])
def test_a_checkpoint_of_other_rows_or_settings_is_refused_by_name(
    claim: Claim, storage: Storage, tmp_path: Path, where: str
) -> None:
    save(tmp_path / "here", 10)
    store(claim, tmp_path / "here", storage)
    other = {**COURSE, "training rows": "1" * 64, "learning_rate": 1e-3, "not known then": 1}

    found, stored, told = go_on(claim, tmp_path / where, storage, other)

    refusal = "The checkpoint at step 10 is of another training, and is not used: it differs in"
    assert found is None
    assert set(told) == {f"{refusal} training rows, learning_rate"}
    assert stored == Stored()


def test_nothing_is_stored_by_an_attempt_that_was_taken_over(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    with session.begin():
        lifecycle.requeue(session, claim)
        take(session)
    save(tmp_path, 10)
    store(claim, tmp_path, storage)
    assert steps(session) == {}
    assert not has(storage, b"state of step 10")


def test_what_was_given_up_on_its_way_is_not_used_and_leaves_nothing(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(tmp_path, 10)
    (saved.path / "a tokenizer, the first by its name").write_bytes(b"arrives")
    (saved.path / OPTIMIZER).write_bytes(b"arrives never" * CHUNK)
    checkpoints.commit(saved)
    uploader = CheckpointUploader(claim, tmp_path, storage, Stored())
    write = Incoming.write

    def interrupted(incoming: Incoming, chunk: bytes) -> None:
        write(incoming, chunk)
        if len(chunk) == CHUNK:
            uploader.give_up()

    monkeypatch.setattr(Incoming, "write", interrupted)
    with uploader:
        wait_for(lambda: not uploader._thread.is_alive())
    assert has(storage, b"arrives")
    assert go_on(claim, tmp_path / "there", storage)[0] is None

    with session.begin():
        lifecycle.fail(session, claim, {"code": "hung", "message": "It hung.", "param": None})
    sweep_blobs(session, age=timedelta(0))
    assert steps(session) == {10: True}  # it might still be arriving
    with session.begin():
        long_ago = func.now() - resume_states.ARRIVES_WITHIN
        session.execute(update(ResumeState).values(created_at=long_ago))
    sweep_blobs(session, age=timedelta(0))
    assert steps(session) == {}
    assert not has(storage, b"arrives")


@pytest.mark.parametrize("ends", ["failed", "cancelled", "paused"])
def test_the_state_of_a_job_goes_when_nobody_can_go_on_from_it(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path, ends: str
) -> None:
    save(tmp_path, 10)
    store(claim, tmp_path, storage)
    manifests = [f"resume/{claim.subject}/000000010-000001.json"]
    with session.begin():
        match ends:
            case "failed":
                lifecycle.fail(session, claim, {"code": "hung", "message": "It hung.", "param": None})
            case "cancelled":
                lifecycle.stop(session, claim)
            case _:
                lifecycle.requeue(session, claim)
                lifecycle.pause(session, session.get_one(Job, claim.subject))

    sweep_blobs(session, age=timedelta(0))

    stays = ends != "failed"
    assert has(storage, b"state of step 10") is stays
    assert storage.manifests(f"resume/{claim.subject}") == (manifests if stays else [])
    if ends == "cancelled":
        with session.begin():
            session.execute(update(Job).values(finished_at=func.now() - timedelta(days=2)))
        sweep_blobs(session, age=timedelta(0))
        assert not has(storage, b"state of step 10")


def test_a_job_that_is_to_stop_fetches_nothing(claim: Claim, storage: Storage, tmp_path: Path) -> None:
    save(tmp_path / "here", 10)
    store(claim, tmp_path / "here", storage)
    lease = Lease(claim)
    lease._wish = Wish.CANCEL
    resuming.fetch_newest(claim, lease, tmp_path / "there", COURSE, storage, lambda message: pytest.fail(str(message)))
    assert not (tmp_path / "there").exists()


class SlowStorage(Storage):
    """As a bucket is on its slow days."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.taken = threading.Event()

    def commit(self, incoming: Incoming, *, anew: bool = False) -> Blob:
        self.taken.wait(20)
        return super().commit(incoming, anew=anew)


@pytest.mark.parametrize("ends", ["paused", "shutting down"])
def test_an_attempt_waits_for_its_last_checkpoint_as_long_as_its_grace(
    session: Session, claim: Claim, tmp_path: Path, set_settings: SetSettings, ends: str
) -> None:
    set_settings(checkpoint_grace=0.5 if ends == "paused" else 300, shutdown_grace=0.5)
    storage = SlowStorage(f"file://{tmp_path / 'storage'}")
    save(tmp_path, 10)
    told: list[str] = []
    shutdown._began_at.value = 0.0 if ends == "paused" else time.monotonic()
    try:
        began = time.monotonic()
        with CheckpointUploader(claim, tmp_path, storage, Stored(), warn=told.append) as uploader:
            uploader.finish(Lease(claim))
        assert 0.5 <= time.monotonic() - began < 15
    finally:
        shutdown._began_at.value = 0.0
        storage.taken.set()
    wait_for(lambda: not uploader._thread.is_alive())
    assert told == ["There was no time to store checkpoint-10: other workers go on from the one before it"]
    with session.begin():
        assert resume_states.stored(session, claim.subject) == []


def test_bytes_that_a_deleted_file_shares_with_a_checkpoint_stay(
    session: Session, project: Project, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    save(tmp_path / "here", 10)
    store(claim, tmp_path / "here", storage)
    with session.begin():
        file = make_file(session, project, b"state of step 10")
        files.delete(session, project, file.id)
    sweep_blobs(session, age=timedelta(0))
    found, _, told = go_on(claim, tmp_path / "there", storage)
    assert found is not None, told


@pytest.mark.fault(22)
def test_a_checkpoint_without_room_in_the_storage_is_told_of_and_keeps_nobody_waiting(
    session: Session, claim: Claim, storage: Storage, tmp_path: Path
) -> None:
    save(tmp_path, 10)
    told: list[str] = []
    began = time.monotonic()
    with CheckpointUploader(claim, tmp_path, storage, Stored(), warn=told.append, reserve=2**60) as uploader:
        uploader.finish(Lease(claim))
    assert time.monotonic() - began < get_settings().checkpoint_grace.total_seconds() / 2
    assert told == ["The storage has no room for checkpoint-10: only this worker can go on from it for now"]
    assert steps(session) == {}
    store(claim, tmp_path, storage)
    assert steps(session) == {10: True}
