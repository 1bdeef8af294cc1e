"""Where a base model's files are: a folder of the models directory, a snapshot of the hub at one commit, or a full
model of the registry in the WORKDIR, as the parent that a job starts from or as the base of an adapter that it goes on
with.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx in hub 1.x, httpx2 in 2.x
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.jobs.prepared import BaseIdentity, Parent
from app.registry import identity, names

SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model"]
"""What is fetched of a hub model: no pickles, no code."""


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """A base on this machine."""

    path: Path
    id: str
    commit: str | None
    """Of a hub snapshot; None for a local folder."""

    def identity(self) -> BaseIdentity:
        """Its hashes; reads all weights."""
        return identity.of_folder(self.path, id=self.id, revision=self.commit)


class BaseNotFound(Exception):
    """There is no such base for this worker."""


class BaseChanged(Exception):
    """The base is not the one that the files were prepared for, or that the adapter was trained on."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


def parent_of(work_dir: Path) -> Parent | None:
    """The registry model that the job starts from, if it does."""
    try:
        return Parent.model_validate_json((work_dir / "parent.json").read_text())
    except FileNotFoundError:
        return None


def locate(model: str, work_dir: Path) -> BaseFolder:
    """Find a local base, or fetch a hub model at the commit its revision means now; of an adapter, its own base.

    Raises `BaseNotFound`, `identity.UnusableBase` for one that would run code, and `BaseChanged` for an adapter's.
    """
    parent = parent_of(work_dir)
    if parent is not None:
        return _of_parent(parent, work_dir)
    if "/" in model:
        return _from_hub(*_hub_id(model))
    return _local(model)


def locate_tokenizer(model: str, work_dir: Path) -> BaseFolder:
    """The folder that a model's tokenizer is read from: of an adapter its base's. Reads no weights. Raises as above."""
    parent = parent_of(work_dir)
    if parent is not None:
        return _of_registry(parent.id, work_dir) if parent.kind == "full" else locate_again(parent.base, work_dir)
    return locate(model, work_dir)


def locate_again(base: BaseIdentity, work_dir: Path) -> BaseFolder:
    """The base that preparing found, at its commit. Raises like `locate`."""
    if names.is_registered(base.id):
        return _of_registry(base.id, work_dir)
    if "/" in base.id:
        return _from_hub(base.id, base.revision)
    return _local(base.id)


def require_same(base: BaseFolder, expected: BaseIdentity, *, suggestion: str) -> None:
    """Raises `BaseChanged`, with the hashes that differ."""
    found = base.identity()
    if found != expected:
        changed = [name for name in BaseIdentity.model_fields if getattr(found, name) != getattr(expected, name)]
        raise BaseChanged(f"The base model '{expected.id}' has changed: {', '.join(changed)} differ.", suggestion)


def _of_parent(parent: Parent, work_dir: Path) -> BaseFolder:
    if parent.kind == "full":
        return _of_registry(parent.id, work_dir)
    base = locate_again(parent.base, work_dir)
    suggestion = f"Put the base back that '{parent.id}' was trained on: it can go on training on no other."
    require_same(base, parent.base, suggestion=suggestion)
    return base


def _of_registry(model: str, work_dir: Path) -> BaseFolder:
    """The worker has fetched it: it is the parent itself, or the base of a parent that is an adapter."""
    parent = parent_of(work_dir)
    folder = work_dir / ("parent" if parent is not None and parent.id == model else "base")
    if not folder.is_dir():
        raise BaseNotFound(f"The base model '{model}' is not in the registry any more.")
    return BaseFolder(folder, model, None)


def work_offline() -> None:
    """Fetch nothing from here on: the base is on this disk, and what a library may look up beside it is not wanted."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what this process starts
    constants.HF_HUB_OFFLINE = True  # the libraries have read the environment at their import


def _local(name: str) -> BaseFolder:
    home = Path(os.environ.get("FINETUNED_HOME", str(Path.home() / ".finetuned")))
    models = Path(os.environ.get("FINETUNED_MODELS_DIR", str(home / "models")))
    folder = models / name
    if name in ("", ".", "..") or folder.name != name or not folder.is_dir():  # `..` is a folder, but no model
        raise BaseNotFound(f"The base model '{name}' is not in this worker's FINETUNED_MODELS_DIR.")
    identity.require_safe(folder)
    return BaseFolder(folder, name, None)


def _hub_id(model: str) -> tuple[str, str | None]:
    name, _, revision = model.partition("@")
    return name, revision or None


def _from_hub(name: str, revision: str | None) -> BaseFolder:
    try:
        commit = revision if revision and _is_commit(revision) else HfApi().model_info(name, revision=revision).sha
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=SAFE_FILES))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BaseNotFound(f"The hub has no model '{name}' at '{revision or 'main'}', or it is gated.") from error
    except HFValidationError as error:
        raise BaseNotFound(f"'{name}' is not a hub id. It has the form 'org/name' or 'org/name@revision'.") from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:  # the last: no connection, no copy
        raise ConnectionError(f"The hub does not give '{name}': {error}") from error
    identity.require_safe(folder, links_may_leave=True)
    return BaseFolder(folder, name, commit)


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(char in "0123456789abcdef" for char in revision)
