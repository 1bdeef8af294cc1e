"""Trainer state in the middle of an attempt: a folder that transformers writes, and our manifest that commits it.

transformers' own `get_last_checkpoint` takes the highest number without looking inside, an empty folder too. A
checkpoint counts here once its manifest is there and every file is as the manifest says.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
KEPT = 2
"""The newest, and the one before it in case the disk spoils the newest."""


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

    @property
    def finished(self) -> bool:
        """No step is left."""
        return self.step >= self.total_steps


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
        "files": files,
    }
    arriving = saved.path / (MANIFEST + ".arriving")
    arriving.write_text(json.dumps(manifest))
    _sync(arriving)
    arriving.replace(saved.path / MANIFEST)
    _sync(saved.path)
    _sync(saved.path.parent)


def newest_verified(folder: Path) -> Checkpoint | None:
    """The checkpoint to go on from; torn ones are set aside under another name."""
    for path in _numbered(folder):
        checkpoint = _verified(path)
        if checkpoint is not None:
            return checkpoint
        path.replace(_free_name(path))
    return None


def verified(folder: Path, step: int) -> Checkpoint | None:
    """The one of a step, if it is there and whole."""
    return _verified(folder / f"checkpoint-{step}")


def prune(folder: Path, *, best: int | None = None) -> None:
    """Remove all but the newest committed ones and that of the best step.

    Called after a commit, so that there is always one to go on from.
    """
    numbered = _numbered(folder)
    kept = [path for path in numbered if (path / MANIFEST).exists()][:KEPT]
    kept += [path for path in numbered if _step_of(path) == str(best)]
    for path in [*numbered, *folder.glob("torn-*")]:
        if path not in kept:
            shutil.rmtree(path)


def _numbered(folder: Path) -> list[Path]:
    """`checkpoint-<step>`, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if _step_of(path).isdigit()]
    return sorted(found, key=lambda path: int(_step_of(path)), reverse=True)


def _step_of(path: Path) -> str:
    return path.name.removeprefix("checkpoint-")


def _verified(folder: Path) -> Checkpoint | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, described in manifest["files"].items():
            if _describe(folder / name) != described:
                return None
        return Checkpoint(
            path=folder,
            step=int(manifest["step"]),
            total_steps=int(manifest["total_steps"]),
            tokens=int(manifest["tokens"]),
            seconds=float(manifest["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _describe(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _free_name(path: Path) -> Path:
    number = 0
    while (name := path.with_name(f"torn-{path.name}-{number}")).exists():
        number += 1
    return name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
