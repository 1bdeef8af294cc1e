"""What is known of a model before a job: its shape, where its `config.json` can be read from here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.auth import Project
from app.errors import ModelNotFound, NotFound
from app.planning import shapes
from app.planning.bases import Base, Tensors
from app.registry import catalogue, identity, names
from app.registry import service as registry
from app.registry.models import RegisteredModel
from app.settings import get_settings
from app.storage import Damaged, get_storage


@dataclass(frozen=True, slots=True)
class Known:
    """A model, as far as this process can know it."""

    base: Base | None
    """None where no config can be had, as of a hub model that the hub does not give, or it is too odd to train on."""
    tokenizer_sha256: str | None
    adapter: RegisteredModel | None
    """Where the model is an adapter, which goes on training as it is."""
    config: dict[str, Any] | None
    """The `config.json` of the base."""


def known(session: Session, project: Project, model: str, *, ask: bool = True, tokenizer: bool = True) -> Known:
    """Look a model up. Raises `ModelNotFound`, or `InvalidRequest` for a folder that is none.

    `ask`: the hub, for seconds at worst, of a model that was never here. `tokenizer`: whether its digest is wanted, for
    which a folder's files are looked at.
    """
    if not names.is_registered(model):
        config = catalogue.config_of(model, ask=ask)
        if config is None or "/" in model:
            return Known(_base(config), None, None, config)
        digest = _tokenizer(model) if tokenizer else None
        return Known(_base(config, catalogue.tensors_of(model)), digest, None, config)
    try:
        row = registry.get(session, project, model)
    except NotFound as error:
        raise ModelNotFound(f"There is no model '{model}' in your registry. GET /v1/models lists yours.") from error
    full = registry.base_of(session, row) if row.kind == "adapter" else row
    config = _published_config(full) if full is not None else _config_of_base(row.base, ask=ask)
    base, digest = _base(config), row.base["tokenizer_sha256"]
    if row.kind == "full":
        return Known(base, digest, None, config)
    return Known(replace(base, goes_on=True) if base is not None else None, digest, row, config)


def _base(config: dict[str, Any] | None, tensors: Tensors | None = None) -> Base | None:
    """As recipes see it: by the whole config's `model_type`, as preparing notes it."""
    if config is None:
        return None
    text = shapes.text_config(config)
    try:
        hidden, context = shapes.number(text, "hidden_size"), shapes.number(text, "context_length")
    except shapes.NotPlannable:
        return None
    family = str(config.get("model_type", ""))
    try:
        return Base(family, hidden, context, shapes.shape_of(config, tensors=tensors), tensors=tensors or {})
    except shapes.NotPlannable as error:
        return Base(family, hidden, context, None, unknown=str(error))


def _tokenizer(model: str) -> str:
    return identity.of_tokenizer(get_settings().models / model)[0]


def at_commit(base: Mapping[str, str]) -> str:
    """How a base is asked for again: of a hub model the files that were trained on."""
    return f"{base['id']}@{base['revision']}" if "/" in base["id"] else base["id"]


def _config_of_base(base: Mapping[str, str], *, ask: bool) -> dict[str, Any] | None:
    """Of a base that a result was trained on: it may be gone since."""
    try:
        return catalogue.config_of(at_commit(base), ask=ask)
    except (ModelNotFound, NotFound):
        return None


def _published_config(model: RegisteredModel) -> dict[str, Any] | None:
    try:
        file = registry.file_of(model, "config.json")
        config = json.loads(b"".join(get_storage().read(file.sha256, size=file.bytes)))
    except (NotFound, Damaged, ValueError):
        return None
    return config if isinstance(config, dict) else None
