"""The base models that jobs may start from: local folders, and ids of the model hub."""

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest, ModelNotFound
from app.registry import hub, identity, names
from app.settings import get_settings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class BaseModelEntry:
    """A base model on offer."""

    id: str
    created_at: datetime
    owned_by: str


def offered() -> list[BaseModelEntry]:
    """What can be listed: every usable local folder, and the hub ids that the settings name in full."""
    local = [
        BaseModelEntry(folder.name, datetime.fromtimestamp(folder.stat().st_mtime, UTC), "local")
        for folder in _folders()
        if identity.is_usable(folder)
    ]
    hub = [
        BaseModelEntry(pattern, datetime.fromtimestamp(0, UTC), pattern.split("/", 1)[0])
        for pattern in _hub_patterns()
        if "*" not in pattern
    ]
    return local + hub


def require(model: str) -> None:
    """Refuse a model that no job can start from. Raises `ModelNotFound`, or `InvalidRequest` for unsafe weights."""
    if "/" in model:
        _require_hub_id(model)
    else:
        _require_folder(model)


def config_of(model: str, *, ask: bool) -> dict[str, Any] | None:
    """A base's `config.json`, without a look at its weights; None for a hub model whose config cannot be had.

    `ask`: the hub, for one that is not on this disk. Raises `ModelNotFound`, or `InvalidRequest` for a folder where
    there is none that can be read.
    """
    if "/" in model:
        _require_hub_id(model)
        return hub.config_of(model, ask=ask)
    with _usable(model) as folder:
        return identity.read_config(folder)


def tensors_of(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a local base's weights; none where there are no weights. Raises `InvalidRequest`."""
    with _usable(model) as folder:
        return identity.tensors_of(folder)


def is_pinned(model: str) -> bool:
    """Whether a hub id names a commit, which always means the same files."""
    return re.fullmatch(r"[0-9a-f]{40}", model.partition("@")[2]) is not None


def _require_folder(model: str) -> None:
    with _usable(model) as folder:
        identity.require_safe(folder)


@contextmanager
def _usable(model: str) -> Iterator[Path]:
    """A base's folder. Raises `ModelNotFound`, and `InvalidRequest` for what is found unusable of it meanwhile."""
    try:
        yield _folder(model)
    except identity.UnusableBase as error:
        raise InvalidRequest(f"The model '{model}' cannot be used: {error}", param="model", code=error.code) from error


def _folder(model: str) -> Path:
    names = {folder.name: folder for folder in _folders()}
    if model not in names:
        near = get_close_matches(model, names, n=3, cutoff=0.5) or sorted(names)[:10]
        known = f"Nearest: {', '.join(near)}." if near else "There is none yet."
        raise ModelNotFound(
            f"The model '{model}' is not a folder of FINETUNED_MODELS_DIR. {known} A hub id has the form 'org/name'."
        )
    return names[model]


def _require_hub_id(model: str) -> None:
    if not HUB_ID.fullmatch(model) or ".." in model:
        raise ModelNotFound(f"'{model}' is not a hub id. It has the form 'org/name' or 'org/name@revision'.")
    name = model.split("@", 1)[0]
    # A pattern with a revision offers that one and no other.
    if not any(fnmatch.fnmatchcase(model if "@" in pattern else name, pattern) for pattern in _hub_patterns()):
        raise ModelNotFound(
            f"This server does not offer the hub model '{name}'. Its operator lists them in FINETUNED_HUB_MODELS."
        )


def _folders() -> list[Path]:
    """Subfolders of the models directory; none where it does not exist yet."""
    directory = get_settings().models
    if not directory.is_dir():
        return []
    hidden = (".", names.PREFIX)
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(hidden))


def _hub_patterns() -> list[str]:
    return [pattern.strip() for pattern in get_settings().hub_models.split(",") if pattern.strip()]
