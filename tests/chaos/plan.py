"""What is drawn from a seed: who is killed how, and which jobs come. Pure, so that a seed's run can be had again."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

SLOTS = 2
"""So that a worker that wakes after its lease meets the one that has its job now."""


class Victim(StrEnum):
    """A part of the service, by its name in the table."""

    TRAINER = "trainer"
    WORKER = "worker, main process"
    CHILD = "worker, pool child"
    PREPARER = "prepare worker"
    API = "api"
    BROKER = "broker"
    POSTGRES = "postgres"
    SWEEPER = "sweeper"


class How(StrEnum):
    """What is done to it."""

    KILL = "SIGKILL"
    END = "SIGTERM"
    FAST = "SIGINT"
    """PostgreSQL's fast shutdown."""
    SLEEP = "SIGSTOP, SIGCONT"
    """Past its lease, where it has one."""
    EMPTY = "FLUSHALL"


WEIGHTS = {
    (Victim.TRAINER, How.KILL): 5,
    (Victim.TRAINER, How.SLEEP): 1,
    (Victim.WORKER, How.KILL): 4,
    (Victim.WORKER, How.END): 2,
    (Victim.CHILD, How.KILL): 4,
    (Victim.CHILD, How.SLEEP): 4,
    (Victim.PREPARER, How.KILL): 2,
    (Victim.PREPARER, How.END): 1,
    (Victim.API, How.KILL): 3,
    (Victim.API, How.END): 1,
    (Victim.API, How.SLEEP): 1,
    (Victim.BROKER, How.KILL): 2,
    (Victim.BROKER, How.SLEEP): 1,
    (Victim.BROKER, How.EMPTY): 2,
    (Victim.POSTGRES, How.KILL): 2,
    (Victim.POSTGRES, How.FAST): 2,
    (Victim.SWEEPER, How.KILL): 2,
    (Victim.SWEEPER, How.SLEEP): 1,
}
"""How often each is drawn beside the others."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One of them."""

    victim: Victim
    how: How
    slot: int
    """Whose worker, child or trainer."""
    in_a_job: bool
    """Whether to wait for a job to be trained there; for what trains, always."""
    after: float
    """Seconds from the kill before it, and from when its victim is there."""
    asleep: float
    """Seconds from SIGSTOP to SIGCONT."""


def kills(seed: int, *, every: float, lease: float) -> Iterator[Kill]:
    """Without end; one in `every` seconds on average. `lease`: seconds that whoever sleeps oversleeps."""
    random = Random(seed)  # noqa: S311  to be had again
    while True:
        ((victim, how),) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        slot, in_a_job = random.randrange(SLOTS), random.random() < 0.5
        after, asleep = random.uniform(0.2, 1.8), random.uniform(1, 5)
        is_busy = victim is Victim.TRAINER or (in_a_job and victim in (Victim.WORKER, Victim.CHILD))
        yield Kill(victim, how, slot, is_busy, after * every, lease + asleep)


class Wish(StrEnum):
    """What a job's owner wishes of it on its way."""

    NONE = "none"
    PAUSE = "pause"
    """And to go on again."""
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that a client asks for, and has to have once."""

    key: str
    """Its Idempotency-Key."""
    method: str
    max_steps: int
    save_steps: int
    wish: Wish
    after: float
    """Seconds from the answer to the wish, and from a pause to its end."""

    def body(self, training_file: str) -> dict[str, Any]:
        """Of the request."""
        hyperparameters = {
            "max_steps": self.max_steps,
            "save_steps": self.save_steps,
            "batch_size": 4,
            "per_device_train_batch_size": 1,
        }
        method = {"type": self.method, self.method: {"hyperparameters": hyperparameters}}
        return {"model": "tiny", "training_file": training_file, "seed": 7, "method": method}


def submissions(seed: int) -> Iterator[Submission]:
    """Without end."""
    random = Random(f"jobs of {seed}")  # noqa: S311  to be had again
    number = 0
    while True:
        number += 1
        method = random.choice(("supervised", "supervised", "dpo"))
        steps, saved = random.randint(30, 90), random.randint(4, 10)
        (wish,) = random.choices((Wish.NONE, Wish.PAUSE, Wish.CANCEL), (7, 2, 1))
        yield Submission(f"chaos-{seed}-{number}", method, steps, saved, wish, random.uniform(1, 30))
