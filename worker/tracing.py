"""An attempt that has ended, as spans of its job's trace."""

from sqlalchemy.orm import Session

from app.monitoring import traces
from app.monitoring.traces import Span
from app.work.lifecycle import Claim
from app.work.models import Attempt
from worker.phases import Phases

NAMES = {"publishing": "publish"}


def tell(session: Session, claim: Claim, phases: Phases | None) -> None:
    """How long it waited, and the attempt with its phases; `phases` None: its worker was lost with what it knew.

    In the transaction that ends the attempt, after its move.
    """
    if traces.sender() is None or not claim.is_of_job:
        return
    attempt = session.get_one(Attempt, (claim.work_id, claim.attempt), populate_existing=True)
    begin = attempt.started_at.timestamp()
    entered = list(phases.until_now()) if phases else []
    end = max([begin + after for _, _, after in entered], default=0.0)
    if attempt.ended_at is not None:
        end = max(end, attempt.ended_at.timestamp())
    parts = [Span(NAMES.get(name, name), begin + since, begin + until) for name, since, until in entered]
    traces.told(
        claim.subject,
        Span("wait", begin - attempt.phases.get("waiting", 0.0), begin, {"finetuned.work": claim.kind}),
        Span(claim.kind, begin, end, _attributes(claim, attempt), tuple(parts)),
    )


def _attributes(claim: Claim, attempt: Attempt) -> dict[str, str | int | float]:
    known = {
        "job": claim.subject,
        "attempt": attempt.number,
        "outcome": attempt.outcome,
        "worker": attempt.worker_id,
        "device": attempt.device.get("name"),
        "resumed_from_step": attempt.resumed_from_step,
        "error": (attempt.error or {}).get("code"),
    }
    return {f"finetuned.{name}": value for name, value in known.items() if value is not None} | {
        "host.name": attempt.host
    }
