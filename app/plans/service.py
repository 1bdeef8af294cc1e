"""Plans: of a spec that somebody asks about, and of a job whose files are prepared."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.auth import Project
from app.errors import InvalidRequest, ModelNotFound, TooMany
from app.files import service as files
from app.jobs import parents, tunings
from app.jobs.prepared import Prepared
from app.jobs.spec import JobRequest, JobSpec
from app.planning import plan as planning
from app.planning import recipes
from app.planning.artifacts import Retention
from app.planning.bases import Base
from app.planning.guardrails import Guardrail
from app.planning.hardware import GIB, Hardware
from app.planning.plan import Data, Plan
from app.planning.reasons import Reason, reasons
from app.planning.shapes import NotPlannable
from app.plans import bases, classes, history, recommendations, rows
from app.plans.classes import Classes
from app.plans.spec import PlanSpec
from app.registry import names
from app.reports import service as reports
from app.settings import get_settings

NOT_COUNTED = Guardrail(
    "tokens_estimated",
    "Nobody has counted the file's tokens for this base yet: rows and tokens are estimated from its size. They are"
    " being counted now.",
    "training_file",
    "Ask again in some seconds.",
)


NO_FILE = "-"
"""In place of the id of a file that there is not."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it is a plan of."""

    plan: Plan
    data: Data
    warnings: list[Guardrail]
    reasons: dict[str, Reason]
    config: dict[str, Any]
    """Of the base."""


def of_request(session: Session, project: Project, request: PlanSpec) -> Planned:
    """Plan a job that there is not. Where its file was not tokenised for this base yet, that is queued.

    Raises `ModelNotFound`, `FileNotUsable`, or `InvalidRequest` for a base whose shape cannot be known here.
    """
    known = bases.known(session, project, request.model)
    base = require_shape(known.base, request.model)
    wanted = request.resources.gpu_memory_gb
    known_classes = classes.known(session)
    here = _corrected(session, classes.open_to(known_classes, wanted))
    assumed = None
    if request.assume is not None:
        assumed = recommendations.Data(request.assume.rows, request.assume.tokens, request.assume.longest)
    spec, said = tunings.decided(session, project, _as_job(request), known_classes, data=assumed)
    if names.is_registered(spec.model):
        spec = parents.require_model(session, project, spec)
    data = _data(session, project, request, spec, base, known.tokenizer_sha256)
    said = [*said, NOT_COUNTED] if data.basis == "estimated" else said
    return planned(spec, base, known.config or {}, data, here, session, said)


def of_job(session: Session, project: Project, spec: JobSpec, prepared: Prepared) -> Planned | None:
    """Plan a job by what its preparation found; None where its base's shape cannot be known here."""
    try:
        hub_model = "/" in spec.model and prepared.parent is None
        model = bases.at_commit(prepared.base.model_dump()) if hub_model else spec.model
        known = bases.known(session, project, model)
    except (ModelNotFound, InvalidRequest):  # it is not on this machine
        return None
    if known.base is None or known.base.shape is None:
        return None
    here = _corrected(session, classes.open_to(classes.known(session), spec.resources.gpu_memory_gb))
    return planned(spec, known.base, known.config or {}, rows.prepared(prepared), here, session, [])


def require_room(session: Session, project: Project, spec: JobSpec, here: Classes) -> None:
    """Refuse a job that none of the worker classes it may go to could train, however short its rows were.

    Raises `InvalidRequest` with what would make it fit. What cannot be known yet is judged once the files are prepared.
    """
    known = bases.known(session, project, spec.model, ask=False, tokenizer=False)
    base = known.base
    if not here or base is None or base.shape is None:
        return
    length = spec.hyperparameters.max_length
    shortest = rows.SHORTEST_GUESS if length == "auto" or not spec.hyperparameters.packing else length
    data = Data(rows=1, tokens=shortest, longest_row=shortest, basis="estimated")

    def are_hopeless(places: tuple[Hardware, ...]) -> bool:
        return all(planning.fit_of(spec, base, data, place).is_hopeless for place in places)

    if not are_hopeless(tuple(replace(one, correction=history.MOST_CORRECTED) for one in here)):
        return  # whatever was measured of others, which nobody has to look up while a client waits
    here = _corrected(session, here)
    if are_hopeless(here):
        found = refusal(planning.make(spec, base, data, here, {}, retention=_retention()))
        raise InvalidRequest(f"{found.message} {found.suggestion}", param=found.param, code="does_not_fit")


class Refusal(NamedTuple):
    """Why a job cannot be trained here, and what would help; `param` is what to change first."""

    message: str
    suggestion: str
    param: str


def refusal(plan: Plan) -> Refusal:
    """Of a plan that is hopeless."""
    place = plan.chosen.place
    message = (
        f"This job takes some {plan.chosen.peak / GIB:.1f} GiB at its peak, and '{place.name}', the largest worker"
        f" class here, has {place.room / GIB:.1f}."
    )
    if not plan.changes:
        return Refusal(
            message, "No change of the spec makes it fit: it needs a larger worker.", "resources.gpu_memory_gb"
        )
    changes = "; ".join(f"{one.param} {json.dumps(one.value)} ({one.train_peak / GIB:.1f} GiB)" for one in plan.changes)
    return Refusal(message, f"What would help: {changes}.", plan.changes[0].param)


def planned(
    spec: JobSpec,
    base: Base,
    config: dict[str, Any],
    data: Data,
    here: tuple[Hardware, ...],
    session: Session,
    said: list[Guardrail],
) -> Planned:
    """The plan with its words."""
    made = planning.make(spec, base, data, here, history.measured(session), retention=_retention())
    return Planned(made, data, [*said, *made.warnings], reasons(spec, made.resolved, made.facts), config)


def _retention() -> Retention:
    settings = get_settings()
    return Retention(settings.checkpoints_kept, settings.checkpoints_kept_every)


def _corrected(session: Session, here: Classes) -> Classes:
    measured = history.corrections(session)
    return tuple(replace(one, correction=measured.get(one.name, 1.0)) for one in here)


def require_shape(base: Base | None, model: str) -> Base:
    """Raises `InvalidRequest` for a base whose shape cannot be known here."""
    if base is None:
        raise InvalidRequest(
            f"This server has no config.json of '{model}' that it can plan by, and the hub gives it none. Put one into"
            " a folder of FINETUNED_MODELS_DIR (weights are not needed for a plan), and plan for that folder's name.",
            param="model",
            code="model_not_plannable",
        )
    try:
        assert base.known_shape  # noqa: S101  asked for its error
    except NotPlannable as error:
        raise InvalidRequest(
            f"The memory of '{model}' cannot be planned: {error}", param="model", code="model_not_plannable"
        ) from error
    return base


def _as_job(request: PlanSpec) -> JobRequest:
    """Without what a plan alone has. What the caller left out stays left out: an adapter's shape is its parent's."""
    body = request.model_dump(mode="json", exclude={"assume"}, exclude_unset=True)
    return JobRequest.model_validate({**body, "training_file": request.training_file or NO_FILE})


def _data(
    session: Session, project: Project, request: PlanSpec, spec: JobSpec, base: Base, tokenizer_sha256: str | None
) -> Data:
    asked = recipes.data_spec(spec)
    if request.assume is not None:
        return rows.assumed(request.assume, asked, base)
    file = files.require_trainable(session, project, spec.training_file, param="training_file")
    found = rows.counted(session, file, asked, tokenizer_sha256) if tokenizer_sha256 else None
    if found is not None:
        return found
    with suppress(TooMany, InvalidRequest):  # the plan is as good without
        reports.report(session, project, file.id, asked, validation_file=spec.validation_file)
    return rows.estimated(file, asked, base)
