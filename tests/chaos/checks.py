"""What must hold of every job, whatever was killed. Pure; each check returns its violations as sentences."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.chaos.histories import History, told

FINAL = ("succeeded", "failed", "cancelled")
BEGAN_BEFORE = 2.0
"""Seconds by which a claim may seem to lie before the end that it waited for: `now()` is when a transaction began."""


def violations(histories: Sequence[History], answers: Mapping[str, str | None], cancelled: set[str]) -> list[str]:
    """All of them. `answers`: by its key, the id that a submission was answered with. `cancelled`: ids of jobs whose
    owner wished that.
    """
    found = list(lost(histories, answers))
    for history in histories:
        checks = (
            unfinished(history, is_cancelled=history.job_id in cancelled),
            misregistered(history),
            overlapping(history),
            told_wrongly(history),
            done_too_often(history),
        )
        found += [f"{history.job_id}: {violation}" for check in checks for violation in check]
    return found


def lost(histories: Sequence[History], answers: Mapping[str, str | None]) -> Iterator[str]:
    """Each submission is one job, the one that it was answered with."""
    jobs: dict[str | None, list[str]] = {}
    for history in histories:
        jobs.setdefault(history.key, []).append(history.job_id)
    for key, job_id in answers.items():
        made = jobs.pop(key, [])
        if job_id is None:
            yield f"the submission {key} was never answered"
        elif made != [job_id]:
            yield f"the submission {key} was answered with {job_id} and made {made or 'no job'}"
    for unknown, made in jobs.items():
        yield f"nobody submitted {made}, with the key {unknown}"


def unfinished(history: History, *, is_cancelled: bool) -> Iterator[str]:
    """A job succeeds, but where its owner cancelled it; nothing of it is left to do."""
    if history.status not in FINAL:
        yield f"is {history.status} for ever"
    elif history.status == "failed":
        yield f"failed: {history.error}"
    elif history.status == "cancelled" and not is_cancelled:
        yield "was cancelled, and nobody wished it"
    left = [f"{work.kind} is {work.status}" for work in history.work if work.status not in FINAL]
    if history.status in FINAL and left:
        yield f"is {history.status}, and its work is left: {', '.join(left)}"
    if history.status == "succeeded" and [work.status for work in history.work] != ["succeeded"] * 2:
        yield f"succeeded without one preparation and one training that did: {history.work}"


def misregistered(history: History) -> Iterator[str]:
    """One result of all steps where it succeeded, else none; of each step one checkpoint at most."""
    results = [model for model in history.models if model.step is None]
    if history.status == "succeeded":
        if [model.name for model in results] != [history.result]:
            yield f"names {history.result} as its result, and the registry has {[one.name for one in results]}"
        elif results[0].steps != history.max_steps:
            yield f"has a result of {results[0].steps} steps instead of {history.max_steps}"
    elif results:
        yield f"is {history.status}, and the registry has {[one.name for one in results]}"
    yield from (
        f"has {count} checkpoints of step {step} in the registry"
        for step, count in Counter(model.step for model in history.models if model.step is not None).items()
        if count > 1
    )


def overlapping(history: History) -> Iterator[str]:
    """The attempts at a piece of work come one after the other, are all counted, and have all ended."""
    for work in history.work:
        numbers = [attempt.number for attempt in work.attempts]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"its attempts at {work.kind} have the numbers {numbers}"
        for attempt, following in itertools.zip_longest(work.attempts, work.attempts[1:]):
            if attempt.ended_at is None:
                yield f"attempt {attempt.number} at {work.kind} has not ended"
            elif following is not None and following.started_at < attempt.ended_at - BEGAN_BEFORE:
                early = attempt.ended_at - following.started_at
                yield f"attempt {following.number} at {work.kind} began {early:.1f} s before the end of the one before"
        if (successes := [one.number for one in work.attempts if one.outcome == "succeeded"]) and (
            len(successes) > 1 or successes[0] != numbers[-1]
        ):
            yield f"of its {len(numbers)} attempts at {work.kind} these succeeded: {successes}"


def told_wrongly(history: History) -> Iterator[str]:
    """An attempt tells its own steps, one after the other from where it went on, and nobody else tells any."""
    attempts, strays = told(history)
    yield from (f"a zombie wrote '{stray.message}'" for stray in strays)
    known = {attempt.number: attempt for attempt in history.attempts()}
    begun = [attempt.attempt for attempt in attempts]
    if begun != sorted(known):
        yield f"its history has the attempts {begun}, the database {sorted(known)}"
        return
    for attempt in attempts:
        start = known[attempt.attempt].resumed_from or 0
        if attempt.steps != list(range(start + 1, start + 1 + len(attempt.steps))):
            yield f"attempt {attempt.attempt} went on from step {start} and told the steps {attempt.steps}"
    checkpoints = Counter(step for attempt in attempts for step in attempt.checkpoints)
    yield from (
        f"told {count} times of its checkpoint at step {step}" for step, count in checkpoints.items() if count > 1
    )


def done_too_often(history: History) -> Iterator[str]:
    """An attempt goes on from the last checkpoint before it: one that was told of, or that comes before a step told."""
    known = {attempt.number: attempt for attempt in history.attempts()}
    last = saved = 0
    for attempt in told(history)[0]:
        row = known.get(attempt.attempt)
        start = row.resumed_from if row is not None else None
        if start is not None or attempt.steps:
            # A step is told before it is saved, and the next one begins after that.
            least = max(saved, (last - 1) // history.save_steps * history.save_steps)
            if (start or 0) < least:
                yield (
                    f"attempt {attempt.attempt} went on from step {start or 0}: {last} had been told, and {least} saved"
                )
        last = max([last, *attempt.steps])
        saved = max([saved, *attempt.checkpoints])


def repeated(history: History) -> int:
    """How many of the steps told had been told before."""
    steps = [step for attempt in told(history)[0] for step in attempt.steps]
    return len(steps) - len(set(steps))


def silences(answers: Iterable[float], *, least: float) -> list[float]:
    """The seconds between two answers, where they are so many at least."""
    return [after - before for before, after in itertools.pairwise(answers) if after - before >= least]
