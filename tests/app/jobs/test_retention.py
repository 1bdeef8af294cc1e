"""What the sweeper deletes, and what it must not."""

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, func, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.files.models import File
from app.jobs import lifecycle, retention
from app.jobs.models import Job
from app.registry import service as registry
from app.registry.models import RegisteredModel
from app.reports.models import PreparedSet
from app.settings import get_settings
from app.storage import Blob, Storage, get_storage
from tests.factories import make_file, make_job, make_manifest, make_queued_job, sweep_blobs, take

LONG_AGO = func.now() - timedelta(hours=1)
AGE = timedelta(minutes=10)


class SlowStorage(Storage):
    """As a bucket is on its slow days."""

    def delete(self, sha256: str) -> None:
        time.sleep(0.5)
        super().delete(sha256)


@pytest.fixture
def hasty(session: Session) -> Iterator[Session]:
    """A session whose transactions may rest for a moment only, as all may but for a longer one."""
    options = {"options": "-c idle_in_transaction_session_timeout=100"}
    engine = create_engine(get_settings().database_url, connect_args=options)
    with Session(engine, expire_on_commit=False) as session:
        yield session
    engine.dispose()


@pytest.mark.fault(36)
def test_files_that_jobs_will_read_stay_and_keep_no_others_from_going(
    session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    with session.begin():
        files = [make_file(session, project, b'{"prompt": "%d", "completion": "b"}\n' % number) for number in range(8)]
        for file in files[:3]:
            make_job(session, project, training_file=file.id)
        make_job(session, project, validation_file=files[3].id)
        session.execute(update(File).values(deleted_at=LONG_AGO))

    sweep_blobs(session, age=AGE)

    stored = [get_storage().has(file.sha256, file.bytes) for file in files]
    assert stored == [True] * 4 + [False] * 4


def test_a_model_goes_with_all_but_what_others_have_too(session: Session, project: Project) -> None:
    storage = get_storage()
    shared, own = storage.put_bytes(b"a tokenizer"), storage.put_bytes(b"the weights")
    with session.begin():
        for name, files in (("ft:gone", [shared, own]), ("ft:stays", [shared])):
            make_queued_job(session, project)
            manifest = make_manifest(session, take(session), name)
            published = [{"name": blob.sha256, "bytes": blob.bytes, "sha256": blob.sha256} for blob in files]
            storage.write_manifest(manifest.key, {})
            registry.register(session, manifest, manifest_sha256="6" * 64).files = published
        session.execute(update(RegisteredModel).where(RegisteredModel.id == "ft:gone").values(deleted_at=LONG_AGO))
        user = make_job(session, project, model="ft:gone")

    sweep_blobs(session, age=AGE)
    assert storage.has(*own)

    with session.begin():
        lifecycle.cancel(session, user)
    sweep_blobs(session, age=AGE)
    assert storage.has(*shared)
    assert not storage.has(*own)
    with session.begin():
        assert session.scalars(select(RegisteredModel.id)).all() == ["ft:stays"]


def test_a_slow_storage_does_not_end_the_lock_that_guards_it(
    hasty: Session, session: Session, project: Project
) -> None:
    with session.begin():
        make_file(session, project)
        session.execute(update(File).values(deleted_at=LONG_AGO))

    with hasty.begin():
        assert retention.delete_unused_blobs(hasty, SlowStorage(get_settings().storage), age=AGE)

    with session.begin():
        assert session.scalar(select(func.count()).select_from(File)) == 0


def test_a_file_that_takes_long_to_read_is_taken(hasty: Session, project: Project) -> None:
    """It is read through before the transaction begins: some hundred megabytes take longer than one may rest."""
    row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    with hasty.begin():
        assert make_file(hasty, project, row * 100_000).rows == 100_000


def test_a_set_goes_with_its_file_or_when_no_job_has_used_it_for_long_but_not_before_a_job_has_read_it(
    session: Session, project: Project
) -> None:
    storage = get_storage()

    def keep_set(session: Session, key: str, file: File, *, used_at: object = None) -> Blob:
        blob = storage.put_bytes(key.encode())
        findings = storage.put_bytes(b"findings of " + key.encode())
        session.add(
            PreparedSet(
                key=key,
                training_sha256=file.sha256,
                report={},
                findings_sha256=findings.sha256,
                findings_bytes=findings.bytes,
                blobs=[blob.sha256, findings.sha256],
                used_at=func.now() if used_at is None else used_at,
            )
        )
        return blob

    with session.begin():
        file = make_file(session, project)
        long_ago = func.now() - timedelta(days=8)
        blobs = {
            "used": keep_set(session, "used", file),
            "old": keep_set(session, "old", file, used_at=long_ago),
            "awaited": keep_set(session, "awaited", file, used_at=long_ago),
            "without a file": keep_set(session, "without a file", File(sha256="0" * 64)),
        }
        job = make_queued_job(session, project, training_file=file.id)
        assert job.prepared is not None
        job.prepared = {**job.prepared, "train": {**job.prepared["train"], "sha256": blobs["awaited"].sha256}}

    sweep_blobs(session, age=AGE)

    assert {key for key, blob in blobs.items() if storage.has(*blob)} == {"used", "awaited"}
    with session.begin():
        assert set(session.scalars(select(PreparedSet.key))) == {"used", "awaited"}
        session.execute(update(Job).values(status="cancelled", finished_at=func.now()))

    sweep_blobs(session, age=AGE)

    assert not storage.has(*blobs["awaited"])
