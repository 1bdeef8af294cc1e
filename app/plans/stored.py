"""Plans that were made, and the dry run that each of them gets: from one of the same question, or made for it.

The formula decides where a job goes, at once; a dry run comes later, for the device that was chosen, and says more
exactly what the job takes there. It never keeps a job waiting, nor ends one.
"""

from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.errors import NotFound
from app.jobs.models import Job
from app.planning.dry_runs import Asked, DryRun
from app.plans import history
from app.plans.models import StoredDryRun, StoredPlan
from app.plans.schemas import DryRunRead, PlanRead
from app.plans.service import Planned
from app.queue import PREPARE
from app.settings import get_settings
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.status import WorkKind

PENDING = 20
"""Dry runs that a project may wait for at once."""
TRIED_AGAIN_AFTER = timedelta(minutes=10)
"""One that failed is made anew for whoever asks after that: the libraries may be newer."""

_found = TypeAdapter(DryRun)


def keep(session: Session, project: Project, planned: Planned) -> PlanRead:
    """Answer with a plan, and keep it; its dry run is queued where there is none yet."""
    made = _dry_run(session, project, planned, priority="normal")
    plan_id = new_id("ftplan-")
    answer = PlanRead.of(planned, _read(made), plan_id=plan_id)
    key = made.key if isinstance(made, StoredDryRun) else None
    session.add(StoredPlan(id=plan_id, project_id=project.id, answer=answer.model_dump(mode="json"), dry_run_key=key))
    return _by(session, answer, made)


def keep_of_job(session: Session, project: Project, job: Job, planned: Planned) -> dict[str, Any]:
    """The job's own plan; where its dry run is yet to come, it is entered when it is there."""
    made = _dry_run(session, project, planned, priority="low")
    if isinstance(made, StoredDryRun) and made.finished_at is None:
        session.add(StoredPlan(id=new_id("ftplan-"), project_id=project.id, job_id=job.id, dry_run_key=made.key))
    return _by(session, PlanRead.of(planned, _read(made)), made).model_dump(mode="json")


def get(session: Session, project: Project, plan_id: str) -> PlanRead:
    """A plan as it is now. Raises `NotFound`."""
    mine = (StoredPlan.id == plan_id, StoredPlan.project_id == project.id, StoredPlan.answer.is_not(None))
    plan = session.scalar(select(StoredPlan).where(*mine))
    if plan is None:
        raise NotFound(f"There is no plan '{plan_id}'. Plans are kept for some days; POST the spec again.")
    answer = PlanRead.model_validate(plan.answer)
    made = session.get(StoredDryRun, plan.dry_run_key) if plan.dry_run_key is not None else None
    return answer if made is None else _by(session, answer, made)


def asked(session: Session, key: str) -> Asked | None:
    """The question behind a dry run; None where nobody wants to know any more."""
    made = session.get(StoredDryRun, key)
    return Asked.model_validate(made.asked) if made is not None else None


def answer(session: Session, holder: Claim, found: DryRun) -> None:
    """A dry run was made: for all plans of its question, and in those of jobs."""
    work.succeed(session, holder)
    _finish(session, holder.subject, found=_found.dump_python(found, mode="json"))


def fail(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """None can be made: the formula stands, and says so."""
    work.fail(session, holder, error)
    _finish(session, holder.subject, error=error)


def forget(session: Session, age: timedelta) -> None:
    """Strike off plans that are so old, and dry runs that no plan asks for any more."""
    session.execute(delete(StoredPlan).where(StoredPlan.created_at < func.now() - age))
    used = select(StoredPlan.id).where(StoredPlan.dry_run_key == StoredDryRun.key).exists()
    session.execute(delete(StoredDryRun).where(StoredDryRun.created_at < func.now() - age, ~used))


def _dry_run(session: Session, project: Project, planned: Planned, *, priority: str) -> StoredDryRun | str:
    """That of the plan's question, or why there is none."""
    plan = planned.plan
    if not get_settings().dry_runs:
        return "FINETUNED_DRY_RUNS is off."
    question = Asked.of(planned.config, plan.resolved, plan.facts, plan.chosen.place.device)
    key = question.key
    made = session.get(StoredDryRun, key)
    if made is not None and made.error is None:
        return made
    if _waiting(session, project) >= PENDING:
        return f"{PENDING} dry runs of this project are waiting already."
    row = insert(StoredDryRun).values(key=key, asked=question.model_dump(mode="json"))
    entered = row.on_conflict_do_update(
        index_elements=[StoredDryRun.key],
        set_={"error": None, "finished_at": None},
        where=StoredDryRun.error.is_not(None) & (StoredDryRun.finished_at < func.now() - TRIED_AGAIN_AFTER),
    ).returning(StoredDryRun.key)
    if session.scalar(entered) is not None:  # else it failed just now, or somebody asked at the same moment
        work_service.enqueue(
            session, WorkKind.PLAN, subject=key, project_id=project.id, queue=PREPARE, priority=priority
        )
    return session.get_one(StoredDryRun, key, populate_existing=True)


def _waiting(session: Session, project: Project) -> int:
    waiting = (
        select(func.count(StoredPlan.dry_run_key.distinct()))
        .join(StoredDryRun, StoredDryRun.key == StoredPlan.dry_run_key)
        .where(StoredPlan.project_id == project.id, StoredDryRun.finished_at.is_(None))
    )
    return session.scalar(waiting) or 0


def _read(made: StoredDryRun | str) -> DryRunRead:
    """As it looks from outside."""
    if isinstance(made, str):
        return DryRunRead(status="unavailable", reason=made)
    if made.error is not None:
        return DryRunRead(status="failed", reason=str(made.error["message"]))
    return DryRunRead(status="succeeded" if made.found is not None else "in_progress")


def _by(session: Session, answer: PlanRead, made: StoredDryRun | str) -> PlanRead:
    """The plan by its dry run, as far as there is one."""
    if isinstance(made, str) or made.found is None:
        return answer.model_copy(update={"dry_run": _read(made)})
    correction = history.corrections(session, "dry_run").get(answer.device, 1.0)
    return answer.by(_found.validate_python(made.found), correction)


def _finish(session: Session, key: str, **ending: Any) -> None:
    session.execute(update(StoredDryRun).where(StoredDryRun.key == key).values(finished_at=func.now(), **ending))
    made = session.get(StoredDryRun, key, populate_existing=True)
    if made is None:
        return
    waiting = select(StoredPlan.job_id).where(StoredPlan.dry_run_key == key, StoredPlan.job_id.is_not(None))
    for job in session.scalars(select(Job).where(Job.id.in_(waiting)).order_by(Job.id).with_for_update()):
        job.plan = _by(session, PlanRead.model_validate(job.plan), made).model_dump(mode="json")
