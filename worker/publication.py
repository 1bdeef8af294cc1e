"""A folder of weights becomes a result: files to blobs, the card, and the manifest last."""

import json
from pathlib import Path

from app.failpoints import failpoint
from app.files.models import File
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.registry import card
from app.registry.manifest import Manifest, PublishedFile, TrainingFile, TrainingReport, as_document
from app.registry.service import name_of_result
from app.storage import Blob, Storage
from app.work.lifecycle import Claim

REFUSED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
"""Pickles, which run code when they are loaded: published weights are safetensors."""


def publish(
    folder: Path, storage: Storage, *, claim: Claim, job: Job, prepared: Prepared, file: File, project_name: str
) -> tuple[Manifest, str]:
    """Store a trainer's result folder and write its manifest. Returns the manifest and its sha256.

    Raises `ValueError` for a folder that holds a pickle.
    """
    report = TrainingReport.model_validate(json.loads((folder / "metrics.json").read_text()))
    stored = [_published(path, folder, storage) for path in sorted(folder.rglob("*")) if path.is_file()]
    spec = job.current_spec
    manifest = Manifest(
        id=name_of_result(spec.model, project_name, spec.suffix),
        project_id=job.project_id,
        job_id=job.id,
        attempt=claim.attempt,
        kind="full" if spec.tuning.type == "full" else "adapter",
        base=prepared.base,
        training_file=TrainingFile(id=file.id, sha256=file.sha256),
        spec=spec,
        report=report,
        files=stored,
    )
    manifest = _with_card(manifest, storage)
    failpoint("before_manifest")
    sha256 = storage.write_manifest(manifest.key, as_document(manifest))
    failpoint("after_manifest")
    return manifest, sha256


def _published(path: Path, folder: Path, storage: Storage) -> PublishedFile:
    if path.suffix in REFUSED:
        raise ValueError(f"{path.name} is a pickle and cannot be published")
    return _as_published(path.relative_to(folder).as_posix(), storage.put_file(path))


def _with_card(manifest: Manifest, storage: Storage) -> Manifest:
    text = storage.put_bytes(card.render(manifest).encode())
    files = sorted([*manifest.files, _as_published("README.md", text)], key=lambda file: file.name)
    return manifest.model_copy(update={"files": files})


def _as_published(name: str, blob: Blob) -> PublishedFile:
    return PublishedFile(name=name, bytes=blob.bytes, sha256=blob.sha256)
