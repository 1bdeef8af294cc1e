"""/v1/fine_tuning/alpha/graders"""

import time

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter

from app.graders.run import grade
from app.graders.schemas import GraderRun, GraderRunRead, GraderValidate, GraderValidated
from app.http import CallerDep

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])

_runs_at_once = CapacityLimiter(2)
"""Each computes for up to some seconds; the others wait for their turn without a thread that other requests want."""


@router.post("/validate")
def validate_grader(given: GraderValidate, _: CallerDep) -> GraderValidated:
    """Look at a grader: its fields, its templates, its formula."""
    return GraderValidated(grader=given.grader)


@router.post("/run")
async def run_grader(given: GraderRun, _: CallerDep) -> GraderRunRead:
    """Grade a sample; what does not fit is flagged in the answer, with a reward of 0."""
    return await to_thread.run_sync(_graded, given, limiter=_runs_at_once)


def _graded(given: GraderRun) -> GraderRunRead:
    began = time.perf_counter()
    graded = grade(given.grader, given.model_sample, given.item or {})
    return GraderRunRead.of(given.grader, graded, seconds=time.perf_counter() - began)
