"""Whose work is claimed first, on a real database."""

import threading
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.db import new_session
from app.work import lifecycle
from app.work.lifecycle import Claim
from app.work.models import Attempt, Work
from app.work.status import PRIORITIES
from tests.factories import WHO

LEASE = timedelta(seconds=60)
ERROR = {"code": "worker_lost", "message": "The trainer was killed.", "param": None}


def enqueue(session: Session, project: str, count: int = 1, *, priority: str = "normal", queue: str = "cpu") -> None:
    """Pieces of training `project-0`, `project-1`, …, after those there are."""
    with session.begin():
        session.execute(
            text(
                "INSERT INTO work (kind, subject, project_id, queue, priority)"
                " SELECT 'train', :project || '-' || made + n, :project, :queue, :priority"
                " FROM (SELECT count(*) AS made FROM work WHERE project_id = :project), generate_series(0, :last) AS n"
                " ORDER BY n"
            ),
            {"project": project, "queue": queue, "priority": PRIORITIES[priority], "last": count - 1},
        )


def take(session: Session, *, queue: str = "cpu", most: int | None = None) -> Claim | None:
    with session.begin():
        return lifecycle.claim(session, queue, who=WHO, lease=LEASE, most=most)


def taken(session: Session, count: int) -> list[str]:
    claims = [take(session) for _ in range(count)]
    return [claim.subject for claim in claims if claim is not None]


def finish(session: Session, claim: Claim | None) -> None:
    assert claim is not None
    with session.begin():
        lifecycle.succeed(session, claim)


def test_slots_go_to_the_project_with_the_fewest_running(session: Session) -> None:
    enqueue(session, "many", 1000)
    enqueue(session, "few", 2)
    assert taken(session, 6) == ["many-0", "few-0", "many-1", "few-1", "many-2", "many-3"]


def test_one_slot_serves_projects_by_turns_though_none_is_running(session: Session) -> None:
    enqueue(session, "many", 1000)
    enqueue(session, "few", 2)
    served = []
    for _ in range(6):
        claim = take(session)
        finish(session, claim)
        assert claim is not None
        served.append(claim.subject)
    assert served == ["many-0", "few-0", "many-1", "few-1", "many-2", "many-3"]


def test_a_priority_stands_before_every_share(session: Session) -> None:
    enqueue(session, "busy", 3, priority="high")
    enqueue(session, "idle", 1)
    enqueue(session, "patient", 1, priority="low")
    assert taken(session, 5) == ["busy-0", "busy-1", "busy-2", "idle-0", "patient-0"]


def test_what_runs_in_another_queue_takes_nothing_of_a_share(session: Session) -> None:
    enqueue(session, "a", 3, queue="gpu-24")
    for _ in range(3):
        take(session, queue="gpu-24")
    enqueue(session, "b")
    enqueue(session, "a")
    assert taken(session, 2) == ["b-0", "a-3"]
    enqueue(session, "a")
    enqueue(session, "b")
    assert taken(session, 2) == ["b-1", "a-4"]  # one each runs here; b was served before a


def test_work_of_an_older_version_has_no_project_and_a_share_all_the_same(session: Session) -> None:
    with session.begin():
        session.execute(text("INSERT INTO work (kind, subject, queue, priority) VALUES ('train', 'old', 'cpu', 1)"))
    enqueue(session, "a", 2)
    assert sorted(taken(session, 2)) == ["a-0", "old"]


def test_claimers_of_one_moment_go_to_different_projects(session: Session) -> None:
    """None of them sees what the others take before they commit."""
    enqueue(session, "many", 1000)
    enqueue(session, "few", 1)
    subjects = []
    with new_session() as first, new_session() as second, new_session() as third:
        for claimer in (first, second, third):
            claim = lifecycle.claim(claimer, "cpu", who=WHO, lease=LEASE)
            assert claim is not None
            subjects.append(claim.subject)
        for claimer in (first, second, third):
            claimer.commit()
    assert subjects == ["many-0", "few-0", "many-1"]


@pytest.mark.fault(15)
def test_many_claimers_take_everything_once_and_share_alike(session: Session) -> None:
    for project in ("a", "b", "c", "d"):
        enqueue(session, project, 50)
    claims: list[Claim] = []
    half = threading.Event()

    def race() -> None:
        with new_session() as mine:
            while not half.is_set():
                with mine.begin():
                    claim = lifecycle.claim(mine, "cpu", who=WHO, lease=LEASE)
                if claim is None:
                    return
                claims.append(claim)
                if len(claims) >= 100:
                    half.set()

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len({claim.work_id for claim in claims}) == len(claims) >= 100
    shares = Counter(claim.subject.split("-")[0] for claim in claims)
    assert max(shares.values()) - min(shares.values()) <= 8


def test_a_project_at_its_limit_waits_and_others_go_on(session: Session) -> None:
    enqueue(session, "a", 5)
    enqueue(session, "b", 1)
    enqueue(session, "a", 2, queue="gpu-24")
    claims = [take(session, most=2) for _ in range(4)]
    assert [claim and claim.subject for claim in claims] == ["a-0", "b-0", "a-1", None]
    assert take(session, queue="gpu-24", most=2) is None
    finish(session, claims[0])
    claim = take(session, queue="gpu-24", most=2)
    assert claim is not None
    assert claim.subject == "a-5"


def test_a_limit_holds_for_claimers_of_one_moment(session: Session) -> None:
    enqueue(session, "a", 100)
    claims: list[Claim | None] = []
    together = threading.Barrier(8)

    def race() -> None:
        with new_session() as mine:
            together.wait()
            with mine.begin():
                claims.append(lifecycle.claim(mine, "cpu", who=WHO, lease=LEASE, most=3))

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sum(claim is not None for claim in claims) == 3


def test_work_whose_trainer_dies_each_time_goes_behind_the_others_of_its_project(session: Session) -> None:
    """Case 32: with one slot, everything else runs between its attempts, also when its wait is over."""
    enqueue(session, "a", 4)
    ran = []
    while (claim := take(session)) is not None:
        ran.append(claim.subject)
        if claim.subject != "a-0":
            finish(session, claim)
        elif claim.failed_attempts < 2:
            with session.begin():
                lifecycle.retry(session, claim, ERROR, delay=timedelta(seconds=30))
            with session.begin():  # half a minute later
                session.execute(
                    update(Work).where(Work.status == "queued").values(available_at=Work.available_at - LEASE / 2)
                )
        else:
            with session.begin():
                lifecycle.fail(session, claim, ERROR)
    assert ran == ["a-0", "a-1", "a-2", "a-3", "a-0", "a-0"]


def test_work_in_its_backoff_holds_nobody_up(session: Session) -> None:
    enqueue(session, "a", 2)
    enqueue(session, "b", 1, priority="low")
    claim = take(session)
    assert claim is not None
    with session.begin():
        lifecycle.retry(session, claim, ERROR, delay=timedelta(hours=1))
    assert taken(session, 3) == ["a-1", "b-0"]


@pytest.mark.parametrize("back", ["handed back by a worker that shuts down", "its worker was lost for the first time"])
def test_work_that_is_not_to_blame_keeps_its_place(session: Session, back: str) -> None:
    enqueue(session, "a", 3)
    claim = take(session)
    assert claim is not None
    with session.begin():
        if back.startswith("handed"):
            lifecycle.requeue(session, claim, outcome="interrupted")
        else:
            lifecycle.retry(session, claim, ERROR, delay=timedelta(0), outcome="lease_expired")
    assert taken(session, 2) == ["a-0", "a-1"]


def test_each_claim_is_one_attempt_of_its_worker(session: Session) -> None:
    enqueue(session, "a")
    claim = take(session)
    assert claim is not None
    with session.begin():
        attempt = session.scalars(select(Attempt)).one()
        work = session.get_one(Work, claim.work_id)
        assert (attempt.work_id, attempt.number, attempt.worker_id) == (claim.work_id, 1, WHO.worker_id)
        assert (attempt.host, attempt.device) == (WHO.host, WHO.device)
        assert work.claimed_at == attempt.started_at
        assert work.lease_until is not None
        assert work.lease_until - attempt.started_at == LEASE
