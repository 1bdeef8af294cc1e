"""How long an attempt was at what."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.work.status import WorkKind
from worker import messages
from worker.messages import AnyMessage


@dataclass(frozen=True, slots=True)
class Phases:
    """What an attempt has entered so far. `loading` is all from the claim to the first step, the download included."""

    kind: WorkKind
    _began: float = field(default_factory=time.monotonic)
    _entered: list[tuple[str, float]] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        """The one before it ends."""
        self._entered.append((phase, time.monotonic() - self._began))

    def hear(self, message: AnyMessage) -> None:
        """What the trainer says it is at."""
        if isinstance(message, messages.Phase):
            self.enter(message.phase)

    def until_now(self) -> Iterator[tuple[str, float, float]]:
        """Each phase with its begin and end, in seconds since the attempt's begin; the last one ends now."""
        first = "loading" if self.kind is WorkKind.TRAIN else "preparing"
        entered = [(first, 0.0), *self._entered, ("", time.monotonic() - self._began)]
        for (phase, begin), (_, end) in itertools.pairwise(entered):
            yield phase, begin, end

    def seconds(self) -> dict[str, float]:
        """How long each phase took; one that was entered twice counts once."""
        found: dict[str, float] = {}
        for phase, begin, end in self.until_now():
            found[phase] = found.get(phase, 0.0) + end - begin
        return found
