"""The moves of jobs and of the work under them, on a real database."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_session
from app.errors import IllegalMove
from app.jobs import events, lifecycle
from app.jobs.models import Job, JobEvent
from app.jobs.status import FINAL, MOVES, JobStatus
from app.registry import service as registry
from app.registry.models import RegisteredModel
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.models import Work
from app.work.status import Desired
from tests.factories import WHO, make_job, make_manifest, make_queued_job, prepare, take
from worker import sweeper

LEASE = timedelta(seconds=60)
ERROR = {"code": "worker_lost", "message": "The worker is gone.", "param": None}


@pytest.mark.parametrize("origin", JobStatus)
@pytest.mark.parametrize("target", JobStatus)
def test_only_the_drawn_moves_are_legal(
    session: Session, project: Project, origin: JobStatus, target: JobStatus
) -> None:
    with session.begin():
        job = make_job(session, project)
        session.execute(update(Job).values(status=origin, **_beside(origin)))
    with session.begin():
        if target in MOVES[origin]:
            assert lifecycle._move(session, job.id, target, **_beside(target)).status == target
        else:
            with pytest.raises(IllegalMove):
                lifecycle._move(session, job.id, target, **_beside(target))


def _beside(status: JobStatus) -> dict[str, object]:
    """What the database's constraints want beside a status."""
    return {
        "finished_at": func.now() if status in FINAL else None,
        "error": {"code": "x", "message": "x", "param": None} if status is JobStatus.FAILED else None,
        "fine_tuned_model": "ft:x" if status is JobStatus.SUCCEEDED else None,
        "paused_by": "user" if status is JobStatus.PAUSED else None,
    }


def test_a_job_is_prepared_then_trained_and_ends_with_one_result(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        assert job.status in (None, JobStatus.VALIDATING_FILES)
        prepare(session, take(session, "prepare"))
    with session.begin():
        session.refresh(job)
        assert job.status == JobStatus.QUEUED
        claim = take(session)
        result = registry.register(session, make_manifest(session, claim), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=["file-r"])
    with session.begin():
        session.refresh(job)
        assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, "ft:tiny:default::1")
        told = session.scalars(select(JobEvent.message).order_by(JobEvent.seq)).all()
    assert told[-2:] == ["New fine-tuned model created: ft:tiny:default::1", "The job has successfully completed"]


def test_an_old_claim_cannot_finish_a_job(session: Session, project: Project) -> None:
    with session.begin():
        make_queued_job(session, project)
        first = take(session)
        lifecycle.requeue(session, first)
        second = take(session)
    for move in (
        lambda: lifecycle.fail(session, first, {"code": "x", "message": "x", "param": None}),
        lambda: lifecycle.requeue(session, first),
        lambda: lifecycle.stop(session, first),
        lambda: work.prolong(session, first, lease=LEASE),
        lambda: work.require_held(session, first),
    ):
        with pytest.raises(IllegalMove), session.begin():
            move()
    with session.begin():
        assert work.prolong(session, second, lease=LEASE) is Desired.RUN


def test_a_job_has_one_registry_row_whoever_registers(session: Session, project: Project) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
        registry.register(session, make_manifest(session, claim, "ft:a"), manifest_sha256="6" * 64)
    with pytest.raises(IntegrityError), session.begin():
        registry.register(session, make_manifest(session, claim, "ft:b"), manifest_sha256="6" * 64)
    with session.begin():
        assert session.scalar(select(func.count()).select_from(RegisteredModel)) == 1


def test_of_eight_claimers_each_job_has_one(session: Session, project: Project) -> None:
    with session.begin():
        for _ in range(40):
            make_job(session, project)
    claimed: list[tuple[str, int]] = []

    def race() -> None:
        while True:
            with new_session() as mine, mine.begin():
                claim = lifecycle.claim(mine, "prepare", who=WHO, lease=LEASE)
            if claim is None:
                return
            claimed.append((claim.subject, claim.attempt))

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(claimed) == len(set(claimed)) == 40


def test_the_first_claimed_is_the_most_urgent_then_the_oldest(session: Session, project: Project) -> None:
    with session.begin():
        jobs = {
            name: make_job(session, project, resources={"priority": priority}).id
            for name, priority in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", "normal"))
        }
        order = [take(session, "prepare").subject for _ in jobs]
    assert order == [jobs["c"], jobs["b"], jobs["d"], jobs["a"]]


WISHES: dict[str, tuple[Callable[[Session, Job], Job], Callable[[Session, Claim], object]]] = {
    "cancelled": (lifecycle.cancel, lifecycle.stop),
    "paused": (lifecycle.pause, lambda session, claim: lifecycle.requeue(session, claim, outcome="paused")),
}
"""By the status that jobs shall have: what a user wishes, and what a worker does that has heard it."""


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("status", "races"),
    [
        ("cancelled", 100),
        ("paused", 100),
        pytest.param("cancelled", 500, marks=pytest.mark.long),
    ],
)
def test_a_wish_against_a_claim_has_one_outcome(session: Session, project: Project, status: str, races: int) -> None:
    """Both begin at the same moment, of each job, and each has won some races at the end."""
    wish, obey = WISHES[status]
    with session.begin():
        queues = copies(session, make_queued_job(session, project), races)
    claims: list[Claim] = []
    together = threading.Barrier(2)

    def claim_all() -> None:
        for queue in queues.values():
            together.wait()
            with new_session() as mine, mine.begin():
                if claim := lifecycle.claim(mine, queue, who=WHO, lease=LEASE):
                    claims.append(claim)

    claimer = threading.Thread(target=claim_all)
    claimer.start()
    for job_id in queues:
        together.wait()
        with new_session() as mine, mine.begin():
            wish(mine, mine.get_one(Job, job_id))
    claimer.join()
    assert 0 < len(claims) < races
    for claim in claims:
        with session.begin():
            assert work.prolong(session, claim, lease=LEASE) is not Desired.RUN
            obey(session, claim)
    with session.begin():
        assert set(session.scalars(select(Job.status).where(Job.id.in_(queues)))) == {status}
        assert set(session.scalars(select(Work.status).where(Work.subject.in_(queues)))) == {status}


def copies(session: Session, job: Job, count: int) -> dict[str, str]:
    """As many jobs like this one, and the queues in which their trainings wait, one for each."""
    values = {"job": job.id, "count": count}
    session.execute(
        text(
            "INSERT INTO jobs (id, project_id, spec, resolved, prepared, status, queue)"
            " SELECT id || '-' || n, project_id, spec, resolved, prepared, status, queue || '-' || n"
            " FROM jobs, generate_series(1, :count) n WHERE id = :job"
        ),
        values,
    )
    session.execute(
        text(
            "INSERT INTO work (kind, subject, queue, priority)"
            " SELECT kind, subject || '-' || n, queue || '-' || n, priority"
            " FROM work, generate_series(1, :count) n WHERE subject = :job AND kind = 'train'"
        ),
        values,
    )
    return {made.id: made.queue for made in session.scalars(select(Job).where(Job.id != job.id).order_by(Job.seq))}


@pytest.mark.parametrize("status", ["cancelled", "paused"])
def test_work_that_lost_its_job_keeps_no_other_from_being_claimed(
    session: Session, project: Project, status: str
) -> None:
    """No move leaves such a row; if one were there all the same, its queue would stand still for ever."""
    with session.begin():
        job, other = make_queued_job(session, project), make_queued_job(session, project)
        (lifecycle.cancel if status == "cancelled" else lifecycle.pause)(session, job)
        session.execute(
            update(Work).where(Work.subject == job.id).values(status="queued", finished_at=None, lease_until=None)
        )
    with session.begin():
        assert take(session).subject == other.id
    with session.begin():
        left = select(Work.status).where(Work.subject == job.id, Work.kind == "train")
        assert session.scalars(left).all() == [status]
        if status == "paused":
            lifecycle.resume(session, job)
            assert take(session).subject == job.id


def test_cancel_is_idempotent_and_too_late_for_a_success(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        lifecycle.cancel(session, job)
        again = lifecycle.cancel(session, job)
        assert again.status == JobStatus.CANCELLED
        other = make_queued_job(session, project)
        claim = take(session)
        result = registry.register(session, make_manifest(session, claim), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=1, result_files=[])
    with pytest.raises(IllegalMove, match="succeeded already"), session.begin():
        lifecycle.cancel(session, other)


ENDS: dict[str, Callable[[Session, Claim], object]] = {
    "handed back": lifecycle.requeue,
    "to be tried again": lambda session, claim: lifecycle.retry(session, claim, ERROR, delay=LEASE),
    "given up": lambda session, claim: lifecycle.fail(session, claim, ERROR),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_whose_cancel_is_wished_ends_cancelled_however_its_attempt_ends(
    session: Session, project: Project, end: str
) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        assert lifecycle.cancel(session, job).desired == Desired.CANCEL
        ENDS[end](session, claim)
        session.refresh(job)
        assert job.status == JobStatus.CANCELLED


def test_a_cancel_at_the_end_of_preparing_is_heard(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        claim = take(session, "prepare")
        assert lifecycle.cancel(session, job).desired == Desired.CANCEL
        prepare(session, claim)
        session.refresh(job)
        assert job.status == JobStatus.CANCELLED
        assert session.scalars(select(Work.kind)).all() == ["prepare"]


def test_a_silent_worker_loses_its_job_and_a_job_that_loses_workers_fails(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
    for attempt in range(1, 5):
        with session.begin():
            session.execute(update(Work).values(available_at=func.now()))
            assert take(session).attempt == attempt
            session.execute(update(Work).where(Work.status == "running").values(lease_until=func.now() - LEASE))
        with session.begin():
            for claim, _ in work_service.silent(session):
                sweeper._take_back(session, claim, host="there")
    with session.begin():
        session.refresh(job)
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_the_database_refuses_half_finished_rows(session: Session, project: Project) -> None:
    with session.begin():
        make_queued_job(session, project)
    for wrong in (
        "UPDATE jobs SET status = 'succeeded'",
        "UPDATE jobs SET status = 'failed', finished_at = now()",
        "UPDATE jobs SET status = 'done'",
        "UPDATE work SET status = 'running'",
        "UPDATE work SET failed_attempts = attempt + 1",
    ):
        with pytest.raises(IntegrityError), session.begin():
            session.execute(text(wrong))


def test_a_job_that_waits_is_paused_at_once_and_nobody_claims_it(session: Session, project: Project) -> None:
    with session.begin():
        job = lifecycle.pause(session, make_queued_job(session, project))
        assert (job.status, job.paused_by, job.desired) == (JobStatus.PAUSED, "user", Desired.PAUSE)
        assert lifecycle.pause(session, job).status == JobStatus.PAUSED
        assert lifecycle.claim(session, "cpu", who=WHO, lease=LEASE) is None
        job = lifecycle.resume(session, job)
        assert (job.status, job.paused_by, job.desired) == (JobStatus.QUEUED, None, Desired.RUN)
        assert take(session).subject == job.id


def test_a_running_job_is_paused_once_its_worker_has_stopped(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        job = lifecycle.pause(session, job)
        assert (job.status, job.desired) == (JobStatus.RUNNING, Desired.PAUSE)
        assert work.prolong(session, claim, lease=LEASE) is Desired.PAUSE
        lifecycle.requeue(session, claim, outcome="paused")
        session.refresh(job)
        assert (job.status, job.paused_by) == (JobStatus.PAUSED, "user")
        lifecycle.resume(session, job)
        assert take(session).failed_attempts == 0


PAUSED_ENDS: dict[str, Callable[[Session, Claim], object]] = {
    "of a worker that shuts down": lifecycle.requeue,
    "to be tried again": lambda session, claim: lifecycle.retry(session, claim, ERROR, delay=LEASE),
}


@pytest.mark.parametrize("end", PAUSED_ENDS)
def test_a_wished_pause_outlives_the_attempt(session: Session, project: Project, end: str) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        lifecycle.pause(session, job)
        PAUSED_ENDS[end](session, claim)
        session.refresh(job)
        assert job.status == JobStatus.PAUSED


LATE_WISHES: dict[str, Callable[[Session, Job], Job]] = {"pause": lifecycle.pause, "cancel": lifecycle.cancel}


@pytest.mark.parametrize("wish", LATE_WISHES)
def test_a_wish_that_comes_too_late_is_none_of_a_job_that_succeeded(
    session: Session, project: Project, wish: str
) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        assert LATE_WISHES[wish](session, job).desired == wish
        result = registry.register(session, make_manifest(session, claim), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=1, result_files=[])
        session.refresh(job)
        assert (job.status, job.desired) == (JobStatus.SUCCEEDED, Desired.RUN)


@pytest.mark.parametrize("queue", ["prepare", "cpu"])
def test_a_wished_pause_is_none_of_a_job_that_failed(session: Session, project: Project, queue: str) -> None:
    with session.begin():
        job = make_job(session, project) if queue == "prepare" else make_queued_job(session, project)
        claim = take(session, queue)
        assert lifecycle.pause(session, job).desired == Desired.PAUSE
        lifecycle.fail(session, claim, ERROR)
        session.refresh(job)
        assert (job.status, job.desired) == (JobStatus.FAILED, Desired.RUN)


def test_a_job_that_was_cancelled_says_so_in_its_wish(session: Session, project: Project) -> None:
    with session.begin():
        job = lifecycle.pause(session, make_queued_job(session, project))
        job = lifecycle.cancel(session, job)
        assert (job.status, job.desired) == (JobStatus.CANCELLED, Desired.CANCEL)


def test_a_pause_that_is_taken_back_leaves_the_job_in_the_queue(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        lifecycle.pause(session, job)
        assert lifecycle.resume(session, job).desired == Desired.RUN
        lifecycle.requeue(session, claim, outcome="paused")  # its trainer had been told already
        session.refresh(job)
        assert job.status == JobStatus.QUEUED


def test_a_job_paused_while_its_files_are_validated_waits_after_that(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        claim = take(session, "prepare")
        job = lifecycle.pause(session, job)
        assert (job.status, job.desired) == (JobStatus.VALIDATING_FILES, Desired.PAUSE)
        prepare(session, claim)
        session.refresh(job)
        assert job.status == JobStatus.PAUSED
        lifecycle.resume(session, job)
        assert take(session).subject == job.id


def test_a_paused_job_can_be_cancelled_and_an_ended_one_neither_paused_nor_resumed(
    session: Session, project: Project
) -> None:
    with session.begin():
        job = lifecycle.pause(session, make_queued_job(session, project))
        assert lifecycle.cancel(session, job).status == JobStatus.CANCELLED
    for move in (lifecycle.pause, lifecycle.resume):
        with pytest.raises(IllegalMove, match="has cancelled already"), session.begin():
            move(session, job)


def test_a_job_that_is_being_cancelled_is_not_paused(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        claim = take(session)
        lifecycle.cancel(session, job)
    with pytest.raises(IllegalMove, match="is being cancelled"), session.begin():
        lifecycle.pause(session, job)
    with session.begin():
        assert work.prolong(session, claim, lease=LEASE) is Desired.CANCEL


def test_whoever_adds_to_a_history_waits_for_who_is_adding(session: Session, project: Project) -> None:
    """Or a reader that has seen the later entry would never look for the earlier one."""
    with session.begin():
        job = make_job(session, project)
    added = threading.Event()

    def add() -> None:
        with new_session() as mine, mine.begin():
            events.tell(mine, job.id, "second")
        added.set()

    with new_session() as first, first.begin():
        events.tell(first, job.id, "first")
        adder = threading.Thread(target=add)
        adder.start()
        assert not added.wait(0.3)
    adder.join()
    with session.begin():
        assert session.scalars(select(JobEvent.message).order_by(JobEvent.seq)).all()[-2:] == ["first", "second"]
