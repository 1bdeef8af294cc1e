"""What is kept of a model that was deleted, and for whom."""

from datetime import timedelta

from sqlalchemy.orm import Session

from app.auth import Project
from app.jobs import lifecycle
from app.registry import service
from app.registry.models import RegisteredModel
from app.storage import Blob, get_storage
from tests.factories import make_identity, make_manifest, make_queued_job, sweep_blobs, take

FULL, ADAPTER = "ft:tiny:default::1", "ft:tiny:default::2"


def enter(session: Session, project: Project, name: str, blob: Blob, *, base: str = "tiny", full: bool = False) -> None:
    """The result of a job that is over, with one file."""
    make_queued_job(session, project)
    claim = take(session)
    manifest = make_manifest(session, claim, name)
    changed = {
        "kind": "full" if full else "adapter",
        "base": make_identity().model_copy(update={"id": base}),
        "files": [manifest.files[0].model_copy(update=blob._asdict())],
    }
    result = service.register(session, manifest.model_copy(update=changed), manifest_sha256="6" * 64)
    lifecycle.succeed(session, claim, result, trained_tokens=1, result_files=[])


def test_a_full_model_is_kept_as_long_as_there_is_an_adapter_on_it(session: Session, project: Project) -> None:
    storage = get_storage()
    weights, adapter = storage.put_bytes(b"a full model"), storage.put_bytes(b"an adapter")
    with session.begin():
        enter(session, project, FULL, weights, full=True)
        enter(session, project, ADAPTER, adapter, base=FULL)
    with session.begin():
        service.delete(session, project, FULL)
    sweep_blobs(session, age=timedelta(0))
    with session.begin():
        base = service.base_of(session, service.get(session, project, ADAPTER))
        assert base is not None
        assert base.id == FULL
        assert storage.has(*weights)

        service.delete(session, project, ADAPTER)
    sweep_blobs(session, age=timedelta(0))
    with session.begin():
        assert session.get(RegisteredModel, FULL, populate_existing=True) is None
    assert not storage.has(*weights)


def test_a_full_model_is_not_kept_for_a_full_model_made_of_it(session: Session, project: Project) -> None:
    storage = get_storage()
    weights, others = storage.put_bytes(b"a full model"), storage.put_bytes(b"its result")
    with session.begin():
        enter(session, project, FULL, weights, full=True)
        enter(session, project, ADAPTER, others, base=FULL, full=True)
    with session.begin():
        service.delete(session, project, FULL)
    sweep_blobs(session, age=timedelta(0))
    assert not storage.has(*weights)
    assert storage.has(*others)
