"""Whether a trainer still gets on, by what is heard of it."""

import time
from collections import deque
from statistics import median

from worker import messages
from worker.messages import AnyMessage

STEPS = 20
"""As many of a job's own steps may one take: an evaluation and a checkpoint are in it."""
REMEMBERED = 50
OTHER_PHASES = 6
"""Times as long may loading and saving be silent, which say nothing while they read or write hundreds of gigabytes."""


class Hanging:
    """Counts the seconds since a trainer was last heard, against those it may be silent for."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds for which a step may say nothing, however short the others were."""
        self._patience = patience
        self._phase = "loading"
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._step_at: float | None = None
        self._heard_at = self._looked_at = time.monotonic()

    def hear(self, message: AnyMessage) -> None:
        """Whatever it says, it gets on."""
        self._heard_at = time.monotonic()
        match message:
            case messages.Phase(phase=phase):
                self._phase, self._step_at = phase, None
            case messages.Metrics():
                if self._step_at is not None:
                    self._steps.append(self._heard_at - self._step_at)
                self._step_at = self._heard_at

    def seconds(self) -> float | None:
        """For which it has been silent, once that is too long; else None. Asked several times a second.

        Seconds in which nobody asked do not count: this process was stopped, and has not read what there is.
        """
        now = time.monotonic()
        if now - self._looked_at > self._patience / 2:
            self._heard_at = max(self._heard_at, now)
        self._looked_at = now
        silent = now - self._heard_at
        return silent if silent > self._allowed() else None

    def _allowed(self) -> float:
        if self._phase != "training":
            return OTHER_PHASES * self._patience
        return max(self._patience, STEPS * median(self._steps)) if self._steps else self._patience
