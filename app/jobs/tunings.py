"""What `tuning: "auto"` becomes: the recommendation for what is known when a job is created."""

from sqlalchemy.orm import Session

from app.auth import Project
from app.files.spec import Method
from app.jobs.spec import JobRequest, JobSpec
from app.planning.guardrails import Guardrail
from app.planning.recommendation import recommend
from app.planning.situations import Goal, Situation
from app.plans import bases, classes, recommendations
from app.plans.classes import Classes

GOALS: dict[Method, Goal] = {
    "supervised": "task",
    "continued_pretraining": "new_knowledge",
    "dpo": "preference",
    "kto": "preference",
    "orpo": "preference",
    "simpo": "preference",
    "reward": "preference",
    "reinforcement": "reasoning",
}
"""What a method is mostly used for: a spec does not say its goal."""


def decided(
    session: Session,
    project: Project,
    request: JobRequest,
    known_classes: Classes,
    *,
    data: recommendations.Data | None = None,
) -> tuple[JobSpec, list[Guardrail]]:
    """The request with its tuning chosen, and what to say of the choice; as it is, where there was none to make.

    `data`: where it is not a file's. Raises what looking up the model and the file do.
    """
    if request.tuning != "auto":
        return request, []
    model = bases.known(session, project, request.model)
    if model.adapter is not None:  # goes on as it is, as without a tuning
        plain = JobSpec.model_validate(request.model_dump(exclude={"tuning"}, exclude_unset=True))
        became = f"{model.adapter.tuning['type']}, as '{model.adapter.id}' is an adapter, which goes on as it is"
        return plain, [_chosen(became, None)]
    data = data or recommendations.of_file(session, project, request.training_file, model)
    found = recommend(
        Situation(
            goal=GOALS[request.method.type],
            rows=data.rows,
            tokens=data.tokens,
            longest_row=data.longest_row,
            rows_are=data.rows_are,
            base=model.base,
            hardware=classes.of_queue(known_classes, classes.queue_for(known_classes, request.resources.gpu_memory_gb)),
            method=request.method.type,
        )
    )
    body = request.model_dump(exclude_unset=True) | {"tuning": found.option.block}
    became = f"{found.option}. {found.tuning.reason} ({found.tuning.source})"
    return JobSpec.model_validate(body), [_chosen(became, " ".join(found.notes) or None)]


def _chosen(became: str, notes: str | None) -> Guardrail:
    advice = "POST /v1/fine_tuning/recommendations says more; send a block to decide yourself."
    message = f"tuning 'auto' became {became}".removesuffix(".") + "."
    return Guardrail("tuning_chosen", f"{message} {notes or ''}".strip(), "tuning", advice)
