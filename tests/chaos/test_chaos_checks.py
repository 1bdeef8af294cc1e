"""Each check of a chaos run, on histories made by hand: one that is as it should be, and each way to be otherwise."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos import checks, plan, report
from tests.chaos.histories import Attempt, Event, History, Model, Work, told
from tests.chaos.plan import How, Kill, Victim
from tests.chaos.strikes import Strike

SAVED_EVERY, STEPS = 4, 10


def event(message: str, step: int | None = None, at: float = 0.0) -> Event:
    return Event(at, message, step)


def steps(first: int, last: int) -> list[Event]:
    return [event(f"Step {step}/{STEPS}: training loss=1.0", step) for step in range(first, last + 1)]


STARTED = event("Fine-tuning job started on here")
STARTED_AGAIN = event("Fine-tuning job started on here (attempt 2)")
LOST = event("Attempt 1 failed: The worker on here has not been heard for 3 s. – trying again")
RESUMED = event("Training goes on from the checkpoint at step 4")
SUCCEEDED = event("New fine-tuned model created: ft:tiny:1")
KILLED = [STARTED, *steps(1, 4), event("Checkpoint created at step 4"), *steps(5, 6), LOST]
"""An attempt that was killed two steps after its checkpoint."""
ATTEMPTS = (
    Attempt(1, started_at=10, ended_at=20, outcome="lease_expired"),
    Attempt(2, started_at=21, ended_at=30, outcome="succeeded", resumed_from=4),
)
PREPARED = Work("prepare", "succeeded", (Attempt(1, started_at=1, ended_at=2, outcome="succeeded"),))
HISTORY = History(
    job_id="ftjob-1",
    key="one",
    status="succeeded",
    max_steps=STEPS,
    save_steps=SAVED_EVERY,
    finished_at=30,
    result="ft:tiny:1",
    work=(PREPARED, Work("train", "succeeded", ATTEMPTS)),
    events=(*KILLED, STARTED_AGAIN, RESUMED, *steps(5, 10), SUCCEEDED),
    models=(Model("ft:tiny:1", None, STEPS), Model("ft:tiny:1:ckpt-step-4", 4, 4)),
)


def having(*attempts: Attempt, status: str = "succeeded") -> dict[str, Any]:
    """Other attempts at training, or another end of them."""
    return {"work": (PREPARED, Work("train", status, attempts or ATTEMPTS))}


def test_a_job_that_was_killed_and_went_on_violates_nothing() -> None:
    assert checks.violations([HISTORY], {"one": "ftjob-1"}, set()) == []
    assert checks.repeated(HISTORY) == 2


FIRST, SECOND = ATTEMPTS
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "stuck": (
        {"status": "queued", "result": None, "models": (), **having(replace(FIRST), status="queued")},
        "is queued for ever",
    ),
    "failed": ({"status": "failed", "error": "killed", "result": None, "models": ()}, "failed: killed"),
    "cancelled by nobody": (
        {"status": "cancelled", "result": None, "models": (), **having(status="cancelled")},
        "was cancelled, and nobody wished it",
    ),
    "ended with work left": (having(status="queued"), "its work is left: train is queued"),
    "trained twice": (
        {"work": (*HISTORY.work, HISTORY.work[1])},
        "succeeded without one preparation and one training that did",
    ),
    "no result": ({"models": ()}, "names ft:tiny:1 as its result, and the registry has []"),
    "two results": (
        {"models": (*HISTORY.models, Model("ft:tiny:2", None, STEPS))},
        "the registry has ['ft:tiny:1', 'ft:tiny:2']",
    ),
    "a result of fewer steps": ({"models": (Model("ft:tiny:1", None, 9),)}, "has a result of 9 steps instead of 10"),
    "a result of a failed job": ({"status": "failed", "result": None}, "is failed, and the registry has ['ft:tiny:1']"),
    "two checkpoints of a step": ({"models": (*HISTORY.models, HISTORY.models[1])}, "has 2 checkpoints of step 4"),
    "an attempt before the end of the last": (
        having(FIRST, replace(SECOND, started_at=15)),
        "attempt 2 at train began 5.0 s before the end of the one before",
    ),
    "an attempt without end": (
        having(replace(FIRST, ended_at=None, outcome=None), SECOND),
        "attempt 1 at train has not ended",
    ),
    "an attempt that is not counted": (having(SECOND), "its attempts at train have the numbers [2]"),
    "two that succeeded": (
        having(replace(FIRST, outcome="succeeded"), SECOND),
        "of its 2 attempts at train these succeeded: [1, 2]",
    ),
    "a step of an attempt that is over": (
        {"events": (*KILLED, *steps(7, 7), STARTED_AGAIN, RESUMED, *steps(5, 10), SUCCEEDED)},
        "a zombie wrote 'Step 7/10: training loss=1.0'",
    ),
    "a checkpoint after the end": (
        {"events": (*HISTORY.events, event("Checkpoint created at step 8"))},
        "a zombie wrote 'Checkpoint created at step 8'",
    ),
    "a step of the attempt before": (
        {"events": (*KILLED, STARTED_AGAIN, RESUMED, *steps(5, 8), *steps(7, 7), *steps(9, 10), SUCCEEDED)},
        "attempt 2 went on from step 4 and told the steps [5, 6, 7, 8, 7, 9, 10]",
    ),
    "a step left out": (
        {"events": (*KILLED, STARTED_AGAIN, RESUMED, *steps(6, 10), SUCCEEDED)},
        "attempt 2 went on from step 4 and told the steps [6, 7, 8, 9, 10]",
    ),
    "an attempt that nobody told of": (
        {"events": (*KILLED, *steps(5, 10), SUCCEEDED)},
        "its history has the attempts [1], the database [1, 2]",
    ),
    "a checkpoint told of twice": (
        {"events": (*KILLED, STARTED_AGAIN, event("Checkpoint created at step 4"), *steps(5, 10), SUCCEEDED)},
        "told 2 times of its checkpoint at step 4",
    ),
    "begun anew in spite of a checkpoint": (
        {**having(FIRST, replace(SECOND, resumed_from=None)), "events": (*KILLED, STARTED_AGAIN, *steps(1, 10))},
        "attempt 2 went on from step 0: 6 had been told, and 4 saved",
    ),
    "begun anew in spite of a checkpoint that went untold": (
        {
            **having(FIRST, replace(SECOND, resumed_from=None)),
            "events": (STARTED, *steps(1, 6), LOST, STARTED_AGAIN, *steps(1, 10)),
        },
        "attempt 2 went on from step 0: 6 had been told, and 4 saved",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_with_a_job_is_named(name: str) -> None:
    change, expected = WRONG[name]
    found = checks.violations([replace(HISTORY, **change)], {"one": "ftjob-1"}, set())
    assert any(violation.startswith("ftjob-1: ") and expected in violation for violation in found), found


def test_a_step_that_was_told_and_not_yet_saved_may_be_done_again() -> None:
    killed = (STARTED, *steps(1, 4), LOST)
    anew = replace(
        HISTORY, events=(*killed, STARTED_AGAIN, *steps(1, 10)), **having(FIRST, replace(SECOND, resumed_from=None))
    )
    assert list(checks.done_too_often(anew)) == []
    assert checks.repeated(anew) == 4


def test_a_job_that_its_owner_cancelled_may_be_cancelled() -> None:
    cancelled = replace(HISTORY, status="cancelled", result=None, models=(), **having(status="cancelled"))
    assert list(checks.unfinished(cancelled, is_cancelled=True)) == []


@pytest.mark.parametrize(
    ("answers", "jobs", "expected"),
    [
        ({"one": "ftjob-1"}, [], "the submission one was answered with ftjob-1 and made no job"),
        ({"one": None}, [HISTORY], "the submission one was never answered"),
        (
            {"one": "ftjob-1"},
            [HISTORY, replace(HISTORY, job_id="ftjob-2")],
            "the submission one was answered with ftjob-1 and made ['ftjob-1', 'ftjob-2']",
        ),
        ({}, [HISTORY], "nobody submitted ['ftjob-1'], with the key one"),
    ],
    ids=["lost", "never answered", "made twice", "made by nobody"],
)
def test_a_submission_is_one_job(answers: dict[str, str | None], jobs: list[History], expected: str) -> None:
    assert list(checks.lost(jobs, answers)) == [expected]


def test_an_attempt_that_was_interrupted_or_paused_writes_nothing_after_that() -> None:
    for end in ("The worker is shutting down; the job goes on with the next one", "The job was paused"):
        attempts, strays = told(replace(HISTORY, events=(STARTED, *steps(1, 2), event(end), *steps(3, 3))))
        assert [attempt.steps for attempt in attempts] == [[1, 2]]
        assert [stray.step for stray in strays] == [3]


def test_a_silence_is_the_time_between_two_answers() -> None:
    assert checks.silences([1.0, 1.5, 4.0, 4.5], least=1.0) == [2.5]


def test_recovery_is_counted_from_the_kill_to_the_next_step_of_any_job_and_of_the_job_that_was_hit() -> None:
    strike = Strike(Kill(Victim.WORKER, How.KILL, slot=0, in_a_job=True, after=1, asleep=1), at=18.0, job_id="ftjob-1")
    told_at = replace(
        HISTORY, events=(STARTED, event("Step 6", 6, at=17.5), STARTED_AGAIN, event("Step 5", 5, at=25.0))
    )
    assert report.recovered(strike, [17.5, 19.0, 25.0]) == 1.0
    assert report.taken_up(strike, told_at) == 3.0
    assert report.went_on(strike, told_at) == 7.0
    assert report.went_on(strike, replace(told_at, **having(FIRST))) is None


def test_a_seed_draws_the_same_kills_and_jobs_again_and_all_kinds_of_them() -> None:
    def drawn(seed: int) -> tuple[list[Any], list[Any]]:
        kills = itertools.islice(plan.kills(seed, every=8, lease=3), 300)
        return list(kills), list(itertools.islice(plan.submissions(seed), 50))

    kills, jobs = drawn(5)
    assert (kills, jobs) == drawn(5)
    assert kills != drawn(6)[0]
    assert {(kill.victim, kill.how) for kill in kills} == set(plan.WEIGHTS)
    assert {job.wish for job in jobs} == set(plan.Wish)
    assert 7 < sum(kill.after for kill in kills) / len(kills) < 9
