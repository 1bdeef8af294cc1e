"""How an attempt ended, written down."""

import logging
import random
from datetime import timedelta
from typing import assert_never

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from app import disks, queue
from app.auth import Project
from app.db import new_session
from app.errors import IllegalMove
from app.failpoints import failpoint
from app.files import service as files
from app.jobs import lifecycle, metrics, space
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.planning import guardrails, recipes
from app.planning.guardrails import Guardrail
from app.planning.plan import Plan
from app.plans import service as plans
from app.plans import stored
from app.queue import CPU
from app.registry import manifest as manifests
from app.registry import service as registry
from app.registry.manifest import Manifest
from app.reports import lifecycle as reports
from app.settings import get_settings
from app.storage import Blob, Damaged, get_storage
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.status import WorkKind
from worker import moves, room, tracing
from worker.outcomes import (
    Answered,
    Arrived,
    Cancelled,
    Counted,
    Failed,
    FilesPrepared,
    Interrupted,
    NoSpace,
    Outcome,
    PassedOn,
    Paused,
    Published,
    Shown,
    TakenOver,
)
from worker.patience import patient
from worker.phases import Phases

log = logging.getLogger(__name__)


def settle(claim: Claim, outcome: Outcome, phases: Phases | None = None) -> None:
    """Write how an attempt ended: one transaction, fenced by the attempt's number, tried until the database answers.

    `phases`: when it was at what; None: nobody has looked.
    """
    log.info("attempt %d at %s of %s: %s", claim.attempt, claim.kind, claim.subject, type(outcome).__name__)
    while True:
        try:
            ring = _settle(claim, outcome, phases)
        except IllegalMove:
            log.warning("attempt %d at %s was taken over; its outcome counts no more", claim.attempt, claim.subject)
            return
        except disks.NoSpace as error:
            outcome = room.without(claim, error)
            continue
        except (OperationalError, InterfaceError):
            raise  # the database has been away for long
        except Exception as error:
            if isinstance(outcome, Failed):
                raise
            log.exception("attempt %d at %s: its outcome cannot be settled", claim.attempt, claim.subject)
            outcome = Failed("internal_error", f"{type(error).__name__}: {error}"[:2000], retryable=True)
            continue
        if ring is not None:
            queue.ring(ring)
        return


@patient
def _settle(claim: Claim, outcome: Outcome, phases: Phases | None) -> str | None:
    """Returns the queue to ring, if one waits to hear of this."""
    table = _table_of_metrics(claim) if isinstance(outcome, Published) else None
    with new_session() as session, session.begin():
        work_service.note_phases(session, claim, phases.seconds() if phases else {})
        match outcome:
            case FilesPrepared(prepared):
                _queue_training(session, claim, prepared)
            case Published(manifest, manifest_sha256):
                assert table is not None  # noqa: S101  made above
                work.require_held(session, claim)  # the table's one row a job would answer a zombie with a crash
                _succeed(session, claim, manifest, manifest_sha256, table)
            case Arrived(blob, judgement):
                files.arrive(session, claim, blob, judgement)
            case Answered(set_key):
                reports.answer(session, claim, set_key)
            case Shown(rows):
                reports.show(session, claim, rows)
            case Counted(found):
                stored.answer(session, claim, found)
            case Cancelled():
                moves.stop(session, claim)
            case Paused():
                moves.requeue(session, claim, outcome="paused")
            case Interrupted():
                moves.requeue(session, claim)
            case NoSpace(lack):
                lifecycle.run_out(session, claim, lack, delay=get_settings().retry_delays[-1])
            case PassedOn(reason):
                lifecycle.pass_on(session, claim, reason, delay=_delay(0))
            case Failed(retryable=True) if claim.failed_attempts < get_settings().max_retries:
                moves.retry(session, claim, outcome.as_error(), delay=_delay(claim.failed_attempts))
            case Failed():
                moves.fail(session, claim, outcome.as_error())
            case TakenOver():
                return None
            case _:
                assert_never(outcome)
        tracing.tell(session, claim, phases)
        # The training has come, or is expected no more.
        return session.get_one(Job, claim.subject).queue if claim.kind is WorkKind.PREPARE else None


def _queue_training(session: Session, claim: Claim, prepared: Prepared) -> None:
    """By its plan, to the smallest worker class with room; where its base's shape is not known, as it was submitted."""
    job = session.get_one(Job, claim.subject)
    spec = job.current_spec
    project = session.get_one(Project, job.project_id)
    planned = plans.of_job(session, project, spec, prepared)
    if planned is None:
        facts = recipes.facts_of(prepared, device="cpu" if job.queue == CPU else "cuda")
        resolved, warnings = recipes.resolve(spec, facts), guardrails.warnings(spec, facts)
        lifecycle.queue_training(session, claim, prepared=prepared, resolved=resolved, warnings=warnings)
        return
    plan, place = planned.plan, planned.plan.chosen.place
    queue_name = place.name if place.is_here else job.queue
    if place.is_here and plan.chosen.is_hopeless:
        found = plans.refusal(plan)
        error = Failed("does_not_fit", found.message, found.param, suggestion=found.suggestion).as_error()
        moves.fail(session, claim, {**error, "log_lines": []})  # the trainer did well
        return
    lifecycle.queue_training(
        session,
        claim,
        prepared=prepared,
        resolved=plan.resolved,
        warnings=[*planned.warnings, *_of_room(session, queue_name, plan)],
        plan=stored.keep_of_job(session, project, job, planned),
        queue=queue_name,
    )


def _of_room(session: Session, queue_name: str, plan: Plan) -> list[Guardrail]:
    return space.forecast(session, queue_name, worker=plan.worker_disk, storage=plan.stored)


def _table_of_metrics(claim: Claim) -> Blob:
    """Stored as it is read, before the transaction that ends the job: a long job has hundreds of thousands of steps."""
    storage = get_storage()
    with storage.incoming() as table:
        with new_session() as session, session.begin():
            metrics.write_csv(session, claim.subject, table)
        return storage.commit(table)


def _succeed(session: Session, claim: Claim, manifest: Manifest, manifest_sha256: str, table: Blob) -> None:
    """The registry's row, the file of metrics and the job's end. Raises `Damaged` for a result that lost a blob."""
    storage = get_storage()
    files.keep_blobs(session)
    if not (manifests.is_whole(manifest, storage) and storage.has(*table)):
        raise Damaged("a file was deleted with another model in the moment it was stored for this one")
    result = registry.register(session, manifest, manifest_sha256=manifest_sha256)
    failpoint("before_success")
    file = files.enter_results(session, manifest.project_id, table)
    lifecycle.succeed(session, claim, result, trained_tokens=manifest.report.trained_tokens, result_files=[file.id])


def _delay(failed_attempts: int) -> timedelta:
    """How long until the next try: the settings' table, and up to a quarter more, so that many do not come at once."""
    delays = get_settings().retry_delays
    return delays[min(failed_attempts, len(delays) - 1)] * random.uniform(1, 1.25)  # noqa: S311  no secret
