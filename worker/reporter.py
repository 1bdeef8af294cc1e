"""Carries what a trainer says into the job's history and progress, a few times a second.

The pipe is read by one thread and the database written by another, so that training never waits for Postgres.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from app.db import new_session
from app.errors import IllegalMove
from app.jobs import events, service
from app.monitoring import lines
from app.planning.hardware import GIB
from app.settings import get_settings
from app.work import service as work_service
from app.work.lifecycle import Claim
from worker import messages
from worker.messages import AnyMessage

log = logging.getLogger(__name__)

INTERVAL = 0.25
"""Seconds between two writes."""
REWARDS = (
    "reward_accuracy",
    "reward_margin",
    "mean_reward",
    "reward_std",
    "equal_rewards",
    "kl",
    "entropy",
    "completion_length",
    "completions_cut",
    "ungraded",
)
KEPT = 100_000
"""Messages kept while the database is away; beyond that the oldest go."""


@dataclass(slots=True)
class _Batch:
    """What one transaction writes."""

    told: list[tuple[events.Level, str]] = field(default_factory=list)
    measured: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    resumed_from: int | None = None
    shrunk: messages.Shrunk | None = None
    probed: messages.Probed | None = None


class Reporter:
    """Takes messages from the thread that hears the trainer; writes them from its own."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._heard: deque[AnyMessage] = deque(maxlen=KEPT)
        self._progress: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=lines.following(self._write_until_over), name="reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Everything heard is written before the attempt is settled, which waits as long for the database."""
        self._over.set()
        self._thread.join()

    def hear(self, message: AnyMessage) -> None:
        """Never waits."""
        self._heard.append(message)

    def warn(self, told: str) -> None:
        """A sentence for the job's events."""
        self.hear(messages.Notice("warn", told))

    def _write_until_over(self) -> None:
        while not self._over.wait(INTERVAL):
            self._write_waiting()
        patience = time.monotonic() + get_settings().database_patience.total_seconds()
        while not self._write_waiting() and time.monotonic() < patience:
            time.sleep(1)  # the database says nothing when it comes back

    def _write_waiting(self) -> bool:
        """Whether nothing is left to write."""
        waiting = list(self._heard)
        if waiting and not self._write(waiting):
            return False
        for _ in waiting:
            self._heard.popleft()
        return True

    def _write(self, waiting: list[AnyMessage]) -> bool:
        batch = _Batch()
        for message in waiting:
            self._translate(message, batch)
        try:
            with new_session() as session, session.begin():
                service.report(session, self._claim, progress=self._progress, told=batch.told, measured=batch.measured)
                if (shrunk := batch.shrunk) is not None:
                    service.shrink(
                        session,
                        self._claim,
                        per_device=shrunk.per_device_train_batch_size,
                        accumulation=shrunk.gradient_accumulation_steps,
                    )
                if (probed := batch.probed) is not None:
                    service.note_probe(session, self._claim, memory_bytes=probed.memory_bytes, seconds=probed.seconds)
                if batch.resumed_from is not None:
                    work_service.note_resume(session, self._claim, batch.resumed_from)
        except IllegalMove:
            return True  # not ours any more: the lease says so to whoever stops the trainer
        except SQLAlchemyError as error:
            log.warning("attempt %d at %s: not reported yet: %s", self._claim.attempt, self._claim.subject, error)
            return False
        return True

    def _translate(self, message: AnyMessage, batch: _Batch) -> None:
        match message:
            case messages.Phase(phase=phase, total_steps=total, resumed_from_step=resumed):
                self._progress = {**self._progress, "phase": "publishing" if phase == "saving" else phase}
                if total is not None:
                    self._progress["total_steps"] = total
                if resumed is not None:
                    batch.resumed_from = resumed
                    batch.told.append(("info", f"Training goes on from the checkpoint at step {resumed}"))
            case messages.Shrunk():
                batch.shrunk = message
            case messages.Probed(memory_bytes=peak, seconds=seconds):
                batch.probed = message
                batch.told.append(
                    ("info", f"Probed: the longest batch fits, with {peak / GIB:.2f} GiB at its peak ({seconds:.1f} s)")
                )
            case messages.Metrics():
                batch.measured.append(_step(message))
                self._progress = {**self._progress, **_progress(message)}
            case messages.Eval():
                batch.measured.append(_evaluation(message, self._progress.get("total_steps")))
            case messages.Notice(level=level, message=text):
                batch.told.append((level, text))
            case messages.Evaluating():
                pass  # heard by who looks whether it hangs
            case messages.Checkpoint() | messages.Done() | messages.NoSpace() | messages.Stopped() | messages.Failed():
                pass  # the registry's row says it, and the attempt's outcome


def _step(metrics: messages.Metrics) -> tuple[str, dict[str, Any]]:
    """An event with OpenAI's names for what it knows, and ours for the rest."""
    data = {
        "step": metrics.step,
        "total_steps": metrics.total_steps,
        "train_loss": metrics.loss,
        "train_mean_token_accuracy": metrics.mean_token_accuracy,
        "epoch": metrics.epoch,
        "learning_rate": metrics.learning_rate,
        "grad_norm": metrics.grad_norm,
        "tokens": metrics.tokens,
        "tokens_per_second": metrics.tokens_per_second,
        "seconds": metrics.seconds,
        "memory_bytes": metrics.memory_bytes,
        **_rewards(metrics, "train"),
    }
    said = f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.loss:.4f}{_reward(metrics)}"
    return said, data


def _evaluation(measured: messages.Eval, total_steps: int | None) -> tuple[str, dict[str, Any]]:
    """An event in the same names. The whole validation file is read each time, which is what `full` means there."""
    data = {
        "step": measured.step,
        "total_steps": total_steps,
        "valid_loss": measured.loss,
        "valid_mean_token_accuracy": measured.mean_token_accuracy,
        "full_valid_loss": measured.loss,
        "full_valid_mean_token_accuracy": measured.mean_token_accuracy,
        **_rewards(measured, "valid"),
    }
    return f"Step {measured.step}: validation loss={measured.loss:.4f}{_reward(measured)}", data


def _rewards(measured: messages.Metrics | messages.Eval, prefix: str) -> dict[str, float]:
    """What only methods on preferences and on rewards measure."""
    named = {name: getattr(measured, name, None) for name in REWARDS}
    return {f"{prefix}_{name}": value for name, value in named.items() if value is not None}


def _reward(measured: messages.Metrics | messages.Eval) -> str:
    return "" if measured.mean_reward is None else f", mean reward={measured.mean_reward:.4f}"


def _progress(metrics: messages.Metrics) -> dict[str, Any]:
    return {
        "phase": "training",
        "step": metrics.step,
        "total_steps": metrics.total_steps,
        "epoch": metrics.epoch,
        "tokens": metrics.tokens,
        "tokens_per_second": metrics.tokens_per_second,
        "loss": metrics.loss,
        "memory_bytes": metrics.memory_bytes,
        "seconds_left": metrics.seconds / metrics.step * (metrics.total_steps - metrics.step),
    }
