"""Room for an attempt: what it needs before it begins, what a worker has, and what comes of there being none."""

import platform
import shutil
from contextlib import suppress
from pathlib import Path

from app import disks
from app.disks import NoSpace
from app.jobs.prepared import Prepared
from app.jobs.space import Lack
from app.storage import Storage, get_storage
from app.work.lifecycle import Claim
from worker import checkpoints, outcomes, workspace
from worker.given import Given
from worker.outcomes import Failed


def reported() -> dict[str, float]:
    """Bytes free on the disks that a worker writes to, for its heartbeat; what cannot be looked at is absent."""
    found: dict[str, float] = {}
    with suppress(OSError):
        found["scratch_free_bytes"] = disks.free(workspace.root())
    with suppress(OSError):
        found["storage_free_bytes"] = get_storage().free_bytes()
    return found


def require_to_begin(folder: Path, start: Given, prepared: Prepared, storage: Storage) -> None:
    """Raises `NoSpace` unless there is room for what is to be fetched and the first checkpoint, and for the result.

    The sizes are the plan's, and of a checkpoint that of the last one where it was larger.
    """
    of_result = planned(start, "result")
    to_save = max(planned(start, "checkpoint"), checkpoints.size_of_newest(folder / "checkpoints"))
    needed = _to_fetch(folder, start, prepared) + to_save
    try:
        disks.require("scratch", folder, needed)
    except NoSpace:
        workspace.forget_torn(folder)
        disks.require("scratch", folder, needed)
    storage.require_room(of_result)


def planned(start: Given, what: str) -> int:
    """Bytes of a job's `checkpoint` or `result`; 0 where its base's shape is not known."""
    return int((start.job.plan or {}).get("disk", {}).get(what, 0))


def without(claim: Claim, error: NoSpace) -> outcomes.NoSpace | Failed:
    """How an attempt ends that ran out of room. What it had begun to write goes first: a checkpoint stays whole."""
    folder = workspace.attempts_folder(claim)
    last = 0
    if folder is not None:
        workspace.forget_torn(folder)
        shutil.rmtree(folder / "uploading", ignore_errors=True)
        last = checkpoints.size_of_newest(folder / "checkpoints")
    free = disks.free(workspace.root()) if error.disk == "scratch" else get_storage().free_bytes()
    # A write that failed although there seems to be room for it would fail again at once.
    needed = error.needed_bytes or max(disks.with_margin(last), free + disks.MARGIN)
    lack = Lack(error.disk, platform.node(), free, needed)
    if not claim.is_of_job:
        return Failed("no_space", f"{lack}.", retryable=True)
    return outcomes.NoSpace(lack)


def _to_fetch(folder: Path, start: Given, prepared: Prepared) -> int:
    rows = (("train.arrow", prepared.train), ("validation.arrow", prepared.validation))
    missing = sum(part.bytes for name, part in rows if part is not None and not (folder / name).exists())
    if not (folder / "parent.json").exists():
        models = [model for model in (start.parent, start.base) if model is not None]
        missing += sum(file["bytes"] for model in models for file in model.files)
    return missing
