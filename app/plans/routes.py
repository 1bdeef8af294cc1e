"""/v1/fine_tuning/plans"""

from fastapi import APIRouter

from app import queue
from app.http import CallerDep, SessionDep
from app.plans import service
from app.plans.schemas import PlanRead
from app.plans.spec import PlanSpec

router = APIRouter(prefix="/v1/fine_tuning/plans", tags=["planning"])


@router.post("")
def plan_training(spec: PlanSpec, caller: CallerDep, session: SessionDep) -> PlanRead:
    """Plan a job without training it: what fits, how long it takes, what would make it fit, and why its numbers are so.

    The body is a job's, or one with `training_file: null` and `assume: {rows, tokens, longest}`.
    """
    with session.begin():
        found = service.of_request(session, caller, spec)
    if found.data.basis == "estimated":
        queue.ring(queue.PREPARE)
    return PlanRead.of(found)
