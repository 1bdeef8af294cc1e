"""An attempt's scratch folder, `$FINETUNED_HOME/work/<job>-<kind>/<attempt>`: made, filled, emptied when the job ended.

An attempt takes the folder of the one before by renaming it: that is how it finds the checkpoints, and how a trainer
whose worker lost its claim, and does not know it yet, comes to write beside what is used and not into it.
"""

import json
import shutil
import time
from datetime import timedelta
from pathlib import Path

from app.db import new_session
from app.files.models import File
from app.files.report import Report
from app.jobs import service as jobs
from app.jobs.models import Job
from app.jobs.prepared import BaseIdentity, Parent, Prepared
from app.registry.models import RegisteredModel
from app.reports import policy
from app.settings import get_settings
from app.storage import Storage
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.status import WorkKind, WorkStatus
from worker import checkpoints, messages


def root() -> Path:
    """Where all scratch folders are."""
    folder = get_settings().home.absolute() / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(job_id: str, kind: WorkKind) -> Path:
    """Where the attempts at a job's work have their folders."""
    return root() / f"{job_id}-{kind}"


def attempts_folder(claim: Claim) -> Path | None:
    """The attempt's folder, if it came to have one; if it is another's by now, nothing."""
    folder = folder_of(claim.subject, claim.kind) / f"{claim.attempt:06d}"
    return folder if folder.exists() else None


def opened(claim: Claim) -> Path:
    """The attempt's folder: taken over from the one before, or new. It stays: only the end of the job empties it."""
    folders = folder_of(claim.subject, claim.kind)
    folders.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folders / f"{claim.attempt:06d}"
    before = max((path for path in folders.iterdir() if path.name < folder.name), default=None)
    if before is not None:
        before.rename(folder)
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def fill_parent(
    folder: Path, model: RegisteredModel, base: RegisteredModel | None, storage: Storage, *, weights: bool = True
) -> None:
    """The registry model that the job starts from: its files, those of its base if that is another, last what it is.

    Without its `weights` it is enough to make tokens with.
    """
    if (folder / "parent.json").exists():
        return
    _fetch(model, folder / "parent", storage, weights=weights)
    if base is not None:
        _fetch(base, folder / "base", storage, weights=weights)
    parent = Parent(id=model.id, kind=model.kind, base=BaseIdentity.model_validate(model.base))
    (folder / "parent.json").write_text(parent.model_dump_json(indent=2))


def _fetch(model: RegisteredModel, folder: Path, storage: Storage, *, weights: bool) -> None:
    for file in model.files:
        if not weights and file["name"].endswith(".safetensors"):
            continue
        target = folder / file["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(file["sha256"], target)


def fill_for_preparing(folder: Path, files: dict[str, File], known: dict[str, Report], storage: Storage) -> None:
    """The uploaded bytes by the spec's names for them, the operator's wishes, and what is known of the same bytes."""
    (folder / "policy.json").write_text(policy.current().model_dump_json(indent=2))
    reports = {key: report.model_dump(mode="json") for key, report in known.items()}
    (folder / "known.json").write_text(json.dumps(reports))
    for name, file in files.items():
        storage.fetch(file.sha256, folder / name)


def fill_for_training(folder: Path, job: Job, prepared: Prepared, storage: Storage) -> None:
    """The resolved spec, what preparing found, and the rows as it left them."""
    (folder / "job.json").write_text(job.current_spec.model_dump_json(indent=2))
    (folder / "prepared.json").write_text(prepared.model_dump_json(indent=2))
    for name, part in (("train.arrow", prepared.train), ("validation.arrow", prepared.validation)):
        target = folder / name
        if part is not None and not target.exists():
            arriving = target.with_suffix(".arriving")
            storage.fetch(part.sha256, arriving)
            arriving.replace(target)
    shutil.rmtree(folder / "result", ignore_errors=True)


def forget_torn(folder: Path) -> None:
    """Remove what an attempt had begun to write: no checkpoint that is whole, and none that is offered whole."""
    checkpoints.forget_torn(folder / "checkpoints")
    for begun in (*(folder / messages.OFFERED).glob("*.arriving"), folder / "result"):
        shutil.rmtree(begun, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tidy(job_id: str, kind: WorkKind) -> None:
    """Empty the folders of work that has ended, but for the trainer's log; a cancelled job keeps its checkpoints."""
    with new_session() as session, session.begin():
        ended = work_service.ended(session, job_id, kind)
    if ended is None or ended is WorkStatus.CANCELLED:
        return
    for entry in folder_of(job_id, kind).glob("*/*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != "trainer.log":
            entry.unlink(missing_ok=True)


def prune(age: timedelta) -> None:
    """Remove what is left of jobs that ended so long ago, of folders that have not been touched for as long.

    So another database's jobs, which this one does not know, are safe while somebody works on them.
    """
    now = time.time()
    old = [folder for folder in root().iterdir() if now - _touched(folder) > age.total_seconds()]
    if not old:
        return
    with new_session() as session, session.begin():
        unfinished = jobs.unfinished(session, [_job_of(folder) for folder in old])
    for folder in old:
        if _job_of(folder) not in unfinished:
            shutil.rmtree(folder, ignore_errors=True)


def _job_of(folder: Path) -> str:
    return folder.name.rsplit("-", 1)[0]


def _touched(folder: Path) -> float:
    """When something was last written into it: two levels down are an attempt's log and its checkpoints."""
    entries = (folder, *folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/checkpoints/*"))
    return max((entry.stat().st_mtime for entry in entries if entry.exists()), default=time.time())
