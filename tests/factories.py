"""Rows that are valid by default, changed by keyword."""

import io
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.files import service as files
from app.files.models import File
from app.files.report import PreparedFile
from app.jobs import lifecycle, retention
from app.jobs.models import Job
from app.jobs.prepared import BaseIdentity, Prepared
from app.jobs.spec import JobSpec
from app.planning import recipes
from app.registry.manifest import Manifest, PublishedFile, TrainingFile, TrainingReport
from app.settings import get_settings
from app.storage import get_storage
from app.work.lifecycle import Claim, Who

WHO = Who("here:cpu:0", "here", {"kind": "cpu", "name": "a processor", "memory_bytes": 1, "uuid": None})


def make_file(session: Session, project: Project, content: bytes = b'{"prompt": "a", "completion": "b"}\n') -> File:
    storage = get_storage()
    with storage.incoming() as incoming:
        incoming.write(content)
        return files.receive(session, storage, project, incoming, filename="rows.jsonl", purpose="fine-tune")


def make_job(session: Session, project: Project, **fields: Any) -> Job:
    """A new job, its preparation queued."""
    given = {"model": "tiny", "training_file": "file-none", "seed": 1, **fields}
    spec = JobSpec.model_validate(given)
    job = Job(id=new_id("ftjob-"), project_id=project.id, spec=spec.model_dump(mode="json"), queue="cpu")
    lifecycle.submit(session, job)
    return job


def make_queued_job(session: Session, project: Project, **fields: Any) -> Job:
    """A job whose files are prepared."""
    job = make_job(session, project, **fields)
    prepare(session, take(session, "prepare"))
    session.refresh(job)
    return job


def take(session: Session, queue: str = "cpu") -> Claim:
    claim = lifecycle.claim(session, queue, who=WHO, lease=get_settings().lease_timeout)
    assert claim is not None
    return claim


def prepare(session: Session, claim: Claim) -> None:
    """Settle a preparation well."""
    job = session.get_one(Job, claim.subject)
    prepared = make_prepared()
    resolved = recipes.resolve(job.current_spec, recipes.facts_of(prepared, device="cpu"))
    lifecycle.queue_training(session, claim, prepared=prepared, resolved=resolved, warnings=[])


def make_prepared() -> Prepared:
    file = PreparedFile(rows=10, tokens=100, trained_tokens=40, longest_row=20, sha256="0" * 64)
    return Prepared(base=make_identity(), model_type="llama", hidden_size=64, context_length=256, train=file)


def make_identity() -> BaseIdentity:
    return BaseIdentity(
        id="tiny",
        revision="sha256:" + "1" * 64,
        weights_sha256="2" * 64,
        tokenizer_sha256="3" * 64,
        chat_template_sha256=None,
    )


def make_manifest(session: Session, claim: Claim, name: str = "ft:tiny:default::1") -> Manifest:
    job = session.get_one(Job, claim.subject)
    return Manifest(
        id=name,
        project_id=job.project_id,
        job_id=job.id,
        attempt=claim.attempt,
        kind="adapter",
        base=make_identity(),
        training_file=TrainingFile(id="file-none", sha256="4" * 64),
        spec=job.current_spec,
        report=TrainingReport(
            steps=2,
            loss_first=2.0,
            loss_last=1.0,
            tokens=10,
            trained_tokens=4,
            train_seconds=1.0,
            peak_memory_bytes=1,
            trained_parameters=1,
            all_parameters=2,
            device="cpu",
            precision="fp32",
            versions={"torch": "2"},
        ),
        files=[PublishedFile(name="adapter_model.safetensors", bytes=1, sha256="5" * 64)],
    )


def sweep_blobs(session: Session, *, age: timedelta) -> None:
    """A round of the sweeper's, as far as it concerns files and models."""
    with session.begin():
        retention.hide_expired(session)
    more = True
    while more:
        with session.begin():
            more = retention.delete_unused_blobs(session, get_storage(), age=age)


def upload_body(content: bytes) -> dict[str, Any]:
    """Keyword arguments for a client's POST."""
    return {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", io.BytesIO(content))}}
