"""Trainer state in the middle of an attempt: a folder that transformers writes, and our manifest that commits it.

transformers' own `get_last_checkpoint` takes the highest number without looking inside, an empty folder too. A
checkpoint counts here once its manifest is there, every file is as the manifest says, and it is one of the training at
hand: of its base, rows and settings. The trainer writes it, its worker carries it to other workers.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec

MANIFEST = "manifest.json"
KEPT = 2
"""The newest, and the one before it in case the disk spoils the newest."""
NOT_THE_COURSE = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "save_steps",
}
"""Settings that change no step's rows nor its loss; the first two are what `resources.on_oom` changes on the way."""
ASIDE = "aside-"
ARRIVING = "arriving-"

Course = Mapping[str, Any]
"""What decides a training's losses, by name: digests of base and rows, and the resolved settings."""
Tell = Callable[[str], None]
"""Takes a sentence for the job's events."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is, or is about to be, committed."""

    path: Path
    step: int
    total_steps: int
    tokens: int
    """Seen up to it, by all attempts that led to it."""
    seconds: float
    """Trained up to it, likewise."""
    best: int | None = None
    """The best step of those evaluated until then."""
    course: Course = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """No step is left."""
        return self.step >= self.total_steps


def course_of(spec: JobSpec, prepared: Prepared) -> Course:
    """Of a resolved spec and its prepared rows."""
    base = prepared.base.model_dump(include={"weights_sha256", "tokenizer_sha256", "chat_template_sha256"})
    return {
        **{f"base.{name}": digest for name, digest in base.items()},
        "parent": prepared.parent.id if prepared.parent else None,
        "training rows": prepared.train.sha256,
        "validation rows": prepared.validation.sha256 if prepared.validation else None,
        "seed": spec.seed,
        "method": spec.method.type,
        "grader": spec.method.grader.model_dump(mode="json") if spec.method.grader else None,
        "tuning": spec.tuning.model_dump(mode="json"),
        **spec.hyperparameters.model_dump(mode="json", exclude=NOT_THE_COURSE),
    }


def commit(saved: Checkpoint) -> None:
    """Make what transformers has written a checkpoint: files synced, then the manifest, whole or not at all."""
    files = {}
    for path in sorted(saved.path.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            _sync(path)
            files[path.relative_to(saved.path).as_posix()] = _describe(path)
    manifest = {
        "step": saved.step,
        "total_steps": saved.total_steps,
        "tokens": saved.tokens,
        "seconds": saved.seconds,
        "best": saved.best,
        "course": saved.course,
        "files": files,
    }
    arriving = saved.path / (MANIFEST + ".arriving")
    arriving.write_text(json.dumps(manifest))
    _sync(arriving)
    arriving.replace(saved.path / MANIFEST)
    _sync(saved.path)
    _sync(saved.path.parent)


def newest_verified(
    folder: Path, course: Course | None = None, tell: Tell = lambda _: None, *, least: int = 0
) -> Checkpoint | None:
    """The checkpoint to go on from, of that step or a later one.

    Torn ones, and those of another course, are set aside under another name, and told of.
    """
    for path in _numbered(folder):
        if _step_of(path) < least:
            break
        checkpoint = _verified(path)
        if checkpoint is None:
            tell(f"The checkpoint at step {_step_of(path)} is torn, and is not used")
        elif differing := differences(checkpoint.course, course or {}):
            tell(other_course(checkpoint.step, differing))
        else:
            return checkpoint
        path.replace(_free_name(path))
    return None


def differences(theirs: Course, ours: Course) -> list[str]:
    """Names of what differs. A version of this service that does not know a setting yet has not written it."""
    return [name for name, value in ours.items() if name in theirs and theirs[name] != value]


def other_course(step: int, differing: list[str]) -> str:
    """Why a checkpoint is not used: the job shall have the result of what it asks for, if it takes longer."""
    return (
        f"The checkpoint at step {step} is of another training, and is not used: it differs in {', '.join(differing)}"
    )


def verified(folder: Path, step: int) -> Checkpoint | None:
    """The one of a step, if it is there and whole."""
    return _verified(path_of(folder, step))


def newest_committed(folder: Path) -> Path | None:
    """The last that a trainer has finished to write, verified or not."""
    return next((path for path in _numbered(folder) if (path / MANIFEST).exists()), None)


def size_of_newest(folder: Path) -> int:
    """Bytes of the last committed one; 0 where there is none."""
    newest = newest_committed(folder)
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) if newest is not None else 0


def forget_torn(folder: Path) -> None:
    """Remove what is no checkpoint and will be none: half written, half fetched, or set aside."""
    torn = [path for path in _numbered(folder) if not (path / MANIFEST).exists()]
    for path in [*torn, *folder.glob(f"{ASIDE}*"), *folder.glob(f"{ARRIVING}*")]:
        shutil.rmtree(path)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Of a committed checkpoint, or one that has been fetched. Raises `OSError`, or `ValueError` for a torn one."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return manifest


def described(path: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    """What a manifest says of its checkpoint. Raises `KeyError`, `TypeError` or `ValueError` where it says too little.

    One that an older version of this service wrote knows neither the best step nor its course.
    """
    best = manifest.get("best")
    return Checkpoint(
        path=path,
        step=int(manifest["step"]),
        total_steps=int(manifest["total_steps"]),
        tokens=int(manifest["tokens"]),
        seconds=float(manifest["seconds"]),
        best=None if best is None else int(best),
        course=dict(manifest.get("course", {})),
    )


def prune(folder: Path, *, best: int | None = None) -> None:
    """Remove all but the newest committed ones and that of the best step.

    Called after a commit, so that there is always one to go on from.
    """
    numbered = _numbered(folder)
    kept = [path for path in numbered if (path / MANIFEST).exists()][:KEPT]
    kept += [path for path in numbered if _step_of(path) == best]
    for path in [*numbered, *folder.glob(f"{ASIDE}*"), *folder.glob(f"{ARRIVING}*")]:
        if path not in kept:
            shutil.rmtree(path)


def _numbered(folder: Path) -> list[Path]:
    """`checkpoint-<step>`, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _verified(folder: Path) -> Checkpoint | None:
    try:
        manifest = read_manifest(folder)
        for name, description in manifest["files"].items():
            if _describe(folder / name) != description:
                return None
        return described(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _describe(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _free_name(path: Path) -> Path:
    number = 0
    while (name := path.with_name(f"{ASIDE}{path.name}-{number}")).exists():
        number += 1
    return name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
