"""A folder of weights becomes a model of the registry: files to blobs, the card, and the manifest last."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from app.db import new_session
from app.disks import NoSpace
from app.errors import IllegalMove
from app.failpoints import failpoint
from app.files import service as files
from app.files.models import File
from app.jobs import lifecycle
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.monitoring import lines
from app.registry import card, names
from app.registry import service as registry
from app.registry.manifest import Manifest, PublishedFile, TrainingFile, TrainingReport, as_document, is_whole
from app.settings import get_settings
from app.storage import Blob, Damaged, Storage
from app.work import lifecycle as work
from app.work.lifecycle import Claim
from worker import checkpoints, messages, workspace
from worker.messages import AnyMessage

log = logging.getLogger(__name__)

REFUSED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
"""Pickles, which run code when they are loaded: published weights are safetensors."""
HOPELESS = (ValueError, LookupError, TypeError, FileNotFoundError, DataError, IntegrityError, ProgrammingError)
"""What is wrong with a folder, or with what would be entered of it, and will be the next time too."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a job's models say of where they come from."""

    claim: Claim
    job: Job
    prepared: Prepared
    file: File
    project_name: str


def publish(folder: Path, storage: Storage, origin: Origin, *, step: int | None = None) -> tuple[Manifest, str]:
    """Store a result, or the checkpoint of a step, and write its manifest. Returns the manifest and its sha256.

    Raises `ValueError` for a folder that holds a pickle.
    """
    report = TrainingReport.model_validate(json.loads((folder / "metrics.json").read_text()))
    spec = JobSpec.model_validate_json((folder / "job.json").read_text())  # as it was trained, which may have shrunk
    stored = [_published(path, folder, storage) for path in sorted(folder.rglob("*")) if path.is_file()]
    job = origin.job
    name = names.of_result(spec.model, origin.project_name, spec.suffix, job_id=job.id)
    manifest = Manifest(
        id=name if step is None else names.of_checkpoint(name, step),
        project_id=job.project_id,
        job_id=job.id,
        attempt=origin.claim.attempt,
        step=step,
        parent=spec.model if origin.prepared.parent else None,
        kind="full" if spec.tuning.type == "full" else "adapter",
        base=origin.prepared.base,
        training_file=TrainingFile(id=origin.file.id, sha256=origin.file.sha256),
        spec=spec,
        report=report,
        files=stored,
    )
    manifest = _with_card(manifest, storage)
    failpoint("before_manifest" if step is None else "before_checkpoint_manifest")
    sha256 = storage.write_manifest(manifest.key, as_document(manifest))
    failpoint("after_manifest" if step is None else "after_checkpoint_manifest")
    return manifest, sha256


class CheckpointPublisher:
    """Enters checkpoints in the registry while training goes on, from a thread of its own.

    What cannot be published now is tried again with the next one, and at the end of the last attempt for as long as the
    database is waited for. It is never a reason to stop, and one checkpoint is not in the way of another.
    """

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        origin: Origin,
        *,
        warn: Callable[[str], None] = lambda _: None,
        reserve: int = 0,
    ) -> None:
        """`warn` takes a sentence for the job's events. `reserve`: bytes of the storage that are left to the result."""
        self._warn = warn
        self._reserve = reserve
        self._full = False
        """Whether the storage had no room for the last."""
        self._folder = folder / messages.OFFERED
        self._storage = storage
        self._origin = origin
        self._offered = threading.Event()
        self._over = False
        self._thread = threading.Thread(
            target=lines.following(self._publish_until_over), name="checkpoints", daemon=True
        )
        self.is_last_chance = False
        """Whether no attempt comes after this one, which would publish what is left in the folder."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """All that were offered are entered before the attempt is settled."""
        self._over = True
        self._offered.set()
        self._thread.join()

    def hear(self, message: AnyMessage) -> None:
        """Never waits."""
        if isinstance(message, messages.Checkpoint):
            self._offered.set()

    def _publish_until_over(self) -> None:
        try:
            while not self._over:
                self._offered.wait()
                self._offered.clear()
                self._publish_offered()
            patience = time.monotonic() + get_settings().database_patience.total_seconds()
            # Nothing is offered any more, but the last may have come after that look.
            while self._publish_offered() and self.is_last_chance and time.monotonic() < patience:
                time.sleep(1)  # neither database nor storage says when it comes back
        except IllegalMove:
            return  # not ours any more: the lease says so to whoever stops the trainer

    @property
    def _claim(self) -> Claim:
        return self._origin.claim

    def _publish_offered(self) -> bool:
        """Those of earlier attempts too: an attempt takes over the folder of the one before.

        Whether one is left that time may mend. Raises `IllegalMove` once the claim is lost.
        """
        steps = {int(path.name.rsplit("-", 1)[-1]): path for path in self._folder.glob("checkpoint-*[0-9]")}
        left = False
        for step, path in sorted(steps.items()):
            try:
                self._publish(path, step)
            except IllegalMove:
                raise
            except NoSpace:
                if not self._full:
                    self._warn(
                        f"The storage has no room for the checkpoint at step {step}: it is not published for now"
                    )
                self._full = True
                self._drop_old(steps)
                return left
            except Exception as error:  # of the storage's client anything may come
                hopeless = isinstance(error, HOPELESS)
                log.warning(
                    "attempt %d at %s: checkpoint of step %d not published%s: %s",
                    self._claim.attempt,
                    self._claim.subject,
                    step,
                    "" if hopeless else " yet",
                    error,
                    exc_info=hopeless,
                )
                left |= not hopeless
        return left

    def _publish(self, path: Path, step: int) -> None:
        with new_session() as session, session.begin():
            entered = lifecycle.has_entered_checkpoint(session, self._claim.subject, step)
        if not entered:
            self._storage.require_room(workspace.size_of(path) + self._reserve)
            self._enter(*publish(path, self._storage, self._origin, step=step))
        self._full = False
        shutil.rmtree(path, ignore_errors=True)

    def _drop_old(self, steps: dict[int, Path]) -> None:
        """While they wait for room in the storage they take none of the worker's: their files are the checkpoints'."""
        for step, path in steps.items():
            if not checkpoints.path_of(self._folder.parent / "checkpoints", step).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _enter(self, manifest: Manifest, manifest_sha256: str) -> None:
        with new_session() as session, session.begin():
            work.require_held(session, self._claim)
            files.keep_blobs(session)
            if not is_whole(manifest, self._storage):
                raise Damaged("a file was deleted with another model in the moment it was stored for this one")
            model = registry.register(session, manifest, manifest_sha256=manifest_sha256)
            extra = manifest.report.model_extra or {}
            lifecycle.enter_checkpoint(session, model, extra["checkpoint"])
            settings = get_settings()
            registry.keep_checkpoints(
                session, model.job_id, newest=settings.checkpoints_kept, every=settings.checkpoints_kept_every
            )


def _published(path: Path, folder: Path, storage: Storage) -> PublishedFile:
    if path.suffix in REFUSED:
        raise ValueError(f"{path.name} is a pickle and cannot be published")
    return _as_published(path.relative_to(folder).as_posix(), storage.put_file(path))


def _with_card(manifest: Manifest, storage: Storage) -> Manifest:
    text = storage.put_bytes(card.render(manifest).encode())
    published = sorted([*manifest.files, _as_published("README.md", text)], key=lambda file: file.name)
    return manifest.model_copy(update={"files": published})


def _as_published(name: str, blob: Blob) -> PublishedFile:
    return PublishedFile(name=name, bytes=blob.bytes, sha256=blob.sha256)
