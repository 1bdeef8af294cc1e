"""/v1/fine_tuning/alpha/graders"""

import time

from fastapi import APIRouter

from app.graders.run import grade
from app.graders.schemas import GraderRun, GraderRunRead, GraderValidate, GraderValidated
from app.http import CallerDep

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])


@router.post("/validate")
def validate_grader(given: GraderValidate, _: CallerDep) -> GraderValidated:
    """Look at a grader: its fields, its templates, its formula."""
    return GraderValidated(grader=given.grader)


@router.post("/run")
def run_grader(given: GraderRun, _: CallerDep) -> GraderRunRead:
    """Grade a sample; what does not fit is flagged in the answer, with a reward of 0."""
    began = time.perf_counter()
    graded = grade(given.grader, given.model_sample, given.item or {})
    return GraderRunRead.of(given.grader, graded, seconds=time.perf_counter() - began)
