"""/v1/fine_tuning/plans"""

from typing import Annotated

from fastapi import APIRouter, Path

from app import queue
from app.http import CallerDep, SessionDep
from app.plans import service, stored
from app.plans.schemas import PlanRead
from app.plans.spec import PlanSpec

router = APIRouter(prefix="/v1/fine_tuning/plans", tags=["planning"])
PlanId = Annotated[str, Path(description="Id of a plan.")]


@router.post("")
def plan_training(spec: PlanSpec, caller: CallerDep, session: SessionDep) -> PlanRead:
    """Plan a job without training it: what fits, how long it takes, what would make it fit, and why its numbers are so.

    The body is a job's, or one with `training_file: null` and `assume: {rows, tokens, longest}`. Its memory is by a
    formula, at once, and by a dry run as soon as there is one: ask for the plan again while `dry_run` is in progress.
    """
    with session.begin():
        plan = stored.keep(session, caller, service.of_request(session, caller, spec))
    if plan.data.basis == "estimated" or plan.dry_run.status == "in_progress":
        queue.ring(queue.PREPARE)
    return plan


@router.get("/{plan_id}")
def get_plan(plan_id: PlanId, caller: CallerDep, session: SessionDep) -> PlanRead:
    """Get a plan that was made, with the memory of its dry run once that is there."""
    with session.begin():
        return stored.get(session, caller, plan_id)
