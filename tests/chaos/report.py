"""The table of a run: who was killed, what it cost, how soon it went on (the median, and the longest)."""

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.checks import repeated
from tests.chaos.histories import History, told
from tests.chaos.strikes import Strike


def recovered(strike: Strike, steps: Sequence[float]) -> float | None:
    """Seconds until any job told of a step, which has to be one that was trained afterwards. `steps`: their times."""
    next_one = bisect_right(steps, strike.at)
    return steps[next_one] - strike.at if next_one < len(steps) else None


def taken_up(strike: Strike, history: History) -> float | None:
    """Seconds until the next attempt at the job that was hit; None: it had none."""
    return next((one.started_at - strike.at for one in history.attempts() if one.started_at > strike.at), None)


def went_on(strike: Strike, history: History) -> float | None:
    """Seconds until the job that was hit told of a step of a later attempt, or ended by it; None: it had none.

    Later kills, and other jobs' turns, are in it.
    """
    begun = taken_up(strike, history)
    if begun is None:
        return None
    steps = [event.at for event in history.events if event.step is not None and event.at >= strike.at + begun]
    ends = [history.finished_at] if history.finished_at is not None else []
    return min([*steps, *ends], default=strike.at) - strike.at


def show(console: Console, strikes: Sequence[Strike], histories: Sequence[History], others: Mapping[str, str]) -> None:
    """Both tables. `others`: more lines for the second, by what they count."""
    by_id = {history.job_id: history for history in histories}
    steps = sorted(event.at for history in histories for event in history.events if event.step is not None)
    table = Table("killed", "how", "times", "in a job", "next step of any job", "that job taken up", "its next step")
    kinds = sorted({(strike.kill.victim, strike.kill.how) for strike in strikes})
    for victim, how in kinds:
        these = [strike for strike in strikes if (strike.kill.victim, strike.kill.how) == (victim, how)]
        hit = [(strike, by_id[strike.job_id]) for strike in these if strike.job_id]
        taken, went = [taken_up(*one) for one in hit], [went_on(*one) for one in hit]
        figures = (_seconds(recovered(strike, steps) for strike in these), _seconds(taken), _seconds(went))
        table.add_row(victim, how, str(len(these)), str(len(hit)), *figures)
    table.add_section()
    table.add_row("all", "", str(len(strikes)), str(sum(strike.job_id is not None for strike in strikes)))
    console.print(table)
    attempts = [attempt for history in histories for attempt in history.attempts()]
    counts = {
        "jobs": _counted([history.status for history in histories]),
        "attempts at training": _counted([str(attempt.outcome) for attempt in attempts]),
        "attempts at preparing": _counted([str(one.outcome) for each in histories for one in each.attempts("prepare")]),
        "that went on from a checkpoint": str(sum(attempt.resumed_from is not None for attempt in attempts)),
        "most attempts at one job": str(max((len(history.attempts()) for history in histories), default=0)),
        "steps done": str(sum(len({step for one in told(each)[0] for step in one.steps}) for each in histories)),
        "steps done again": str(sum(map(repeated, histories))),
        **others,
    }
    counted = Table("", "", show_header=False)
    for what, figure in counts.items():
        counted.add_row(what, figure)
    console.print(counted)


def _counted(found: Sequence[str]) -> str:
    kinds = ", ".join(f"{found.count(kind)} {kind}" for kind in sorted(set(found)))
    return f"{len(found)}: {kinds}"


def _seconds(found: Iterable[float | None]) -> str:
    known = [one for one in found if one is not None]
    return f"{statistics.median(known):.1f} s, ≤ {max(known):.1f} s" if known else "–"
