"""The model that a job starts from: a base on offer, or a registry model that goes on training.

An adapter goes on as it is, on its own base, which may be a full model of the registry: its shape is the parent's, and
a spec that asks for another is refused. A full model is the new base, of any tuning.
"""

from typing import Any

from sqlalchemy.orm import Session

from app.auth import Project
from app.errors import InvalidRequest, ModelNotFound, NotFound
from app.jobs.spec import JobSpec, LoraTuning
from app.registry import catalogue, names
from app.registry import service as registry
from app.registry.models import RegisteredModel

SHAPE = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "use_dora",
    "use_rslora",
    "init_lora_weights",
)
"""What of a tuning is fixed once an adapter has been trained."""


def require_model(session: Session, project: Project, spec: JobSpec) -> JobSpec:
    """Refuse a model that no job can start from; returns the spec, with an adapter's shape where it goes on with one.

    Raises `ModelNotFound` or `InvalidRequest`.
    """
    if not names.is_registered(spec.model):
        catalogue.require(spec.model)
        return spec
    try:
        parent = registry.get(session, project, spec.model)
    except NotFound as error:
        raise ModelNotFound(
            f"There is no model '{spec.model}' in your registry. GET /v1/models lists what a job can start from."
        ) from error
    _require_its_output(spec, parent)
    if parent.kind == "full":
        return spec
    if names.is_registered(parent.base["id"]) and registry.base_of(session, parent) is None:
        raise ModelNotFound(
            f"'{parent.id}' can go on training only on the base it was trained on, '{parent.base['id']}', which is not"
            " in the registry any more. Start from another model."
        )
    return spec.model_copy(update={"tuning": _continued(spec, parent)})


def _require_its_output(spec: JobSpec, parent: RegisteredModel) -> None:
    """A reward model gives numbers where others give words. Raises `InvalidRequest`."""
    if parent.method == "reward" and spec.method.type != "reward":
        raise InvalidRequest(
            f"'{parent.id}' is a reward model: it gives numbers and has no words to train. Send method.type 'reward',"
            f" or start from '{parent.base['id']}'.",
            param="method.type",
        )
    if parent.kind == "adapter" and parent.method != "reward" and spec.method.type == "reward":
        raise InvalidRequest(
            f"'{parent.id}' is an adapter that gives words: a reward model cannot go on from it. Start from"
            f" '{parent.base['id']}', or from a full model.",
            param="method.type",
        )


def _continued(spec: JobSpec, parent: RegisteredModel) -> LoraTuning:
    """The parent's tuning, after a look at what the spec says of its own. Raises `InvalidRequest`."""
    if "tuning" not in spec.model_fields_set:
        return _tuning_of(parent)
    if not isinstance(spec.tuning, LoraTuning):
        raise InvalidRequest(
            f"'{parent.id}' is an adapter: only an adapter can go on training from it. Send tuning.type 'lora' or"
            " 'qlora', or leave 'tuning' out.",
            param="tuning.type",
        )
    for name in SHAPE:
        asked, has = getattr(spec.tuning, name), parent.tuning[name]
        if name in spec.tuning.model_fields_set and asked not in ("auto", has):
            raise InvalidRequest(
                f"'{parent.id}' was trained with {name} {has!r}, which cannot change while it goes on training. Leave"
                f" '{name}' out, or start from its base '{parent.base['id']}'.",
                param=f"tuning.{name}",
            )
    return _tuning_of(parent, type=spec.tuning.type, loraplus_lr_ratio=spec.tuning.loraplus_lr_ratio)


def _tuning_of(parent: RegisteredModel, **changed: Any) -> LoraTuning:
    tuning = JobSpec.model_validate(
        {"model": parent.id, "training_file": "-", "tuning": {**parent.tuning, **changed}}
    ).tuning
    assert isinstance(tuning, LoraTuning)  # noqa: S101  an adapter has no other
    return tuning
