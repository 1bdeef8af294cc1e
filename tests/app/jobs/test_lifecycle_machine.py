"""The lifecycle as a state machine against the real SQL: any order of moves, by any claim that was ever made."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_session
from app.errors import IllegalMove
from app.jobs import lifecycle
from app.jobs import service as jobs
from app.jobs.models import Job
from app.jobs.space import Lack
from app.jobs.status import FINAL
from app.registry import service as registry
from app.settings import get_settings
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.models import Work
from app.work.status import Desired, WorkKind
from tests.factories import WHO, make_job, make_manifest, prepare
from worker import moves, sweeper

LEASE = timedelta(seconds=60)
ERROR = {"code": "worker_lost", "message": "The trainer was killed.", "param": None}
LACK = Lack("scratch", "here", free_bytes=10, needed_bytes=20)
QUEUES = st.sampled_from(["prepare", "cpu"])
STATE = text(
    """
    SELECT jobs.id, jobs.status, jobs.desired, jobs.paused_by,
        coalesce(jsonb_agg(jsonb_build_object(
            'id', work.id, 'kind', work.kind, 'status', work.status, 'desired', work.desired, 'attempt', work.attempt,
            'failed_attempts', work.failed_attempts,
            'attempts', (SELECT jsonb_agg(attempts ORDER BY number) FROM attempts WHERE work_id = work.id)
        ) ORDER BY work.id), '[]') AS works,
        (SELECT count(*) FROM registered_models WHERE job_id = jobs.id) AS results
    FROM jobs LEFT JOIN work ON work.subject = jobs.id GROUP BY jobs.id ORDER BY jobs.seq
    """
)


def _settle_well(session: Session, claim: Claim) -> None:
    if claim.kind is WorkKind.PREPARE:
        prepare(session, claim)
        return
    work.require_held(session, claim)  # as the worker does, before the table's one result a job refuses a zombie's
    manifest = make_manifest(session, claim, f"ft:tiny:default::{claim.subject}-{claim.attempt}")
    result = registry.register(session, manifest, manifest_sha256="6" * 64)
    lifecycle.succeed(session, claim, result, trained_tokens=1, result_files=[])


def _settle_a_failure(session: Session, claim: Claim) -> None:
    """As the worker does."""
    if claim.failed_attempts < get_settings().max_retries:
        moves.retry(session, claim, ERROR, delay=timedelta(seconds=30))
    else:
        moves.fail(session, claim, ERROR)


def _obey(session: Session, claim: Claim) -> None:
    """Do what is wished; without a wish, hand back as a worker that shuts down."""
    match work.prolong(session, claim, lease=LEASE):
        case Desired.CANCEL:
            moves.stop(session, claim)
        case Desired.PAUSE:
            moves.requeue(session, claim, outcome="paused")
        case Desired.RUN:
            moves.requeue(session, claim)


def _beat(session: Session, claim: Claim) -> None:
    work.prolong(session, claim, lease=LEASE)


def _report(session: Session, claim: Claim) -> None:
    jobs.report(session, claim, progress={"step": 1}, told=[], measured=[])


def _give_up(session: Session, claim: Claim) -> None:
    moves.fail(session, claim, ERROR)


def _run_out(session: Session, claim: Claim) -> None:
    lifecycle.run_out(session, claim, LACK, delay=timedelta(seconds=30))


Write = Callable[[Session, Claim], None]
ENDINGS: list[Write] = [_settle_well, _settle_a_failure, _obey, _give_up, _run_out, moves.requeue]
WRITES: list[Write] = [*ENDINGS, _beat, _report]
WISHES = [lifecycle.cancel, lifecycle.pause, lifecycle.resume]


class Lifecycle(RuleBasedStateMachine):
    """Jobs of one project, workers that claim, settle, fall silent and come back, and an owner who changes his mind."""

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project
        self.jobs: list[str] = []
        self.held: dict[int, Claim] = {}
        """The live claims, by their work."""
        self.zombies: list[Claim] = []
        """Claims whose work was taken back, or ended."""
        self.last: dict[int, int] = {}
        """The highest attempt ever made at a piece of work."""
        self.ended: dict[str, str] = {}
        """The final statuses of jobs."""
        with new_session() as session, session.begin():
            for table in ("work", "registered_models", "jobs"):
                session.execute(text(f"DELETE FROM {table}"))  # noqa: S608  names from above

    @initialize()
    def begin(self) -> None:
        """Two jobs are prepared, so that there is something to train, and one of them has lost a worker."""
        for _ in range(2):
            self.submit()
            self.claim("prepare")
            self.write(0, _settle_well)
        self.claim("cpu")
        self.expire()

    @precondition(lambda self: len(self.jobs) < 4)
    @rule()
    def submit(self) -> None:
        with new_session() as session, session.begin():
            self.jobs.append(make_job(session, self.project).id)

    @rule(queue=QUEUES)
    def claim(self, queue: str) -> None:
        """Of this queue; where it is empty, of the other. Every backoff is over."""
        with new_session() as session, session.begin():
            session.execute(update(Work).where(Work.available_at > func.now()).values(available_at=func.now()))
        for name in (queue, "cpu", "prepare"):
            with new_session() as session, session.begin():
                claim = lifecycle.claim(session, name, who=WHO, lease=LEASE)
            if claim is not None:
                break
        self._enter(claim)

    @rule(queue=QUEUES)
    def claim_together(self, queue: str) -> None:
        """Neither sees what the other takes, and what is in its backoff is not taken."""
        with new_session() as session, session.begin():
            early = set(session.scalars(select(Work.id).where(Work.available_at > func.now())))
        with new_session() as one, new_session() as other, one.begin(), other.begin():
            both = [lifecycle.claim(session, queue, who=WHO, lease=LEASE) for session in (one, other)]
        for claim in both:
            assert claim is None or claim.work_id not in early
            self._enter(claim)

    def _enter(self, claim: Claim | None) -> None:
        if claim is None:
            return
        assert claim.work_id not in self.held
        assert claim.attempt == self.last.get(claim.work_id, 0) + 1
        self.held[claim.work_id] = claim
        self.last[claim.work_id] = claim.attempt

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 3), write=st.sampled_from(WRITES))
    def write(self, which: int, write: Write) -> None:
        """By a worker that holds its claim. What its owner wished of it meanwhile comes true, however it ends."""
        claim = list(self.held.values())[which % len(self.held)]
        with new_session() as session, session.begin():
            wished = session.get_one(Work, claim.work_id).desired
            write(session, claim)
        if write not in ENDINGS:
            return
        self.zombies.append(self.held.pop(claim.work_id))
        status = next(job["status"] for job in self._state() if job["id"] == claim.subject)
        if wished == Desired.CANCEL and not (write is _settle_well and claim.kind is WorkKind.TRAIN):
            assert status == "cancelled"
        if wished == Desired.PAUSE and claim.kind is WorkKind.TRAIN and write not in (_settle_well, _give_up):
            assert status in ("paused", "failed")

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 3),
        wish=st.sampled_from([lifecycle.cancel, lifecycle.pause]),
        write=st.sampled_from(ENDINGS),
    )
    def wish_of_what_runs(self, which: int, wish: Callable[[Session, Job], Job], write: Write) -> None:
        """And it ends before its worker has heard of it."""
        claim = list(self.held.values())[which % len(self.held)]
        with new_session() as session, session.begin():
            job = session.get_one(Job, claim.subject)
            if job.desired != Desired.CANCEL:
                wish(session, job)
        self.write(which, write)

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 5), write=st.sampled_from(WRITES))
    def write_too_late(self, which: int, write: Write) -> None:
        """By one that does not hold it any more: it is refused, and nothing has changed."""
        # Those first whose work somebody else is at.
        claim = sorted(self.zombies, key=lambda one: one.work_id not in self.held)[which % len(self.zombies)]
        before = self._state()
        with pytest.raises(IllegalMove), new_session() as session, session.begin():
            write(session, claim)
        assert self._state() == before

    @rule(which=st.integers(0, 3), wish=st.sampled_from(WISHES))
    def wish(self, which: int, wish: Callable[[Session, Job], Job]) -> None:
        with new_session() as session, session.begin():
            job = session.get_one(Job, self.jobs[which % len(self.jobs)])
            refused = job.status in FINAL or job.desired == Desired.CANCEL
            try:
                with session.begin_nested():
                    wish(session, job)
            except IllegalMove:
                assert refused

    @precondition(lambda self: self.held)
    @rule()
    def expire(self) -> None:
        """All workers fall silent for a whole lease, and the sweeper takes back what they held."""
        with new_session() as session, session.begin():
            session.execute(update(Work).where(Work.status == "running").values(lease_until=func.now() - LEASE))
        with new_session() as session, session.begin():
            for claim, _ in work_service.silent(session):
                assert self.held.pop(claim.work_id).attempt == claim.attempt
                self.zombies.append(claim)
                sweeper._take_back(session, claim, host="here")
        assert not self.held

    @rule(free=st.sampled_from([10, 20]))
    def room_is_reported(self, free: int) -> None:
        """And the sweeper has those go on that it will do for."""
        with new_session() as session, session.begin():
            work_service.hear(session, WHO, queue="cpu", pid=1, usage={"scratch_free_bytes": free})
        before = [job["id"] for job in self._state() if job["paused_by"] == "no_space"]
        with new_session() as session, session.begin():
            lifecycle.go_on_where_there_is_room(session)
        now = {job["id"]: job["status"] for job in self._state()}
        assert {now[one] for one in before} <= ({"queued"} if free >= LACK.needed_bytes else {"paused"})

    def _state(self) -> list[dict[str, Any]]:
        with new_session() as session, session.begin():
            return [dict(row) for row in session.execute(STATE).mappings()]

    @invariant()
    def everything_fits_together(self) -> None:
        most = get_settings().max_retries
        for job in self._state():
            status, works = job["status"], {one["kind"]: one for one in job["works"]}
            assert len(works) == len(job["works"])
            assert (
                self.ended.setdefault(job["id"], status) == status if status in FINAL else job["id"] not in self.ended
            )
            assert job["results"] == (status == "succeeded")
            unfinished = {
                one["kind"]: one["status"] for one in job["works"] if one["status"] in ("queued", "running", "paused")
            }
            if status in FINAL:
                assert unfinished == {}
            elif status == "validating_files":
                assert unfinished in ({"prepare": "queued"}, {"prepare": "running"})
            else:
                assert unfinished == {"train": status}
            assert (job["paused_by"] is not None) == (status == "paused")
            for one in works.values():
                attempts = one["attempts"] or []
                assert [attempt["number"] for attempt in attempts] == list(range(1, one["attempt"] + 1))
                live = [attempt["number"] for attempt in attempts if attempt["outcome"] is None]
                assert live == ([one["attempt"]] if one["status"] == "running" else [])
                assert live == ([self.held[one["id"]].attempt] if one["id"] in self.held else [])
                failed = [attempt for attempt in attempts if attempt["outcome"] in ("failed", "lease_expired")]
                assert len(failed) == one["failed_attempts"] <= most + 1


SHORT = settings(max_examples=10, stateful_step_count=20, phases=[Phase.generate])
"""What fails is printed as it was found: to make it shorter takes minutes."""
LONG = settings(max_examples=300, stateful_step_count=50, phases=[Phase.generate, Phase.shrink])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(LONG, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_no_order_of_moves_breaks_the_lifecycle(session: Session, project: Project, how: settings) -> None:
    run_state_machine_as_test(
        cast("Any", lambda: Lifecycle(project)),  # a factory is as good as the class that the signature asks for
        settings=settings(how, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)),
    )
