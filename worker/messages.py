"""What a trainer tells its worker: one JSON object a line, on a pipe.

Run by hand, a trainer writes the same lines to its standard output.
"""

from typing import Literal

import msgspec

from app.failures import Code

OFFERED = "offered"
"""WORKDIR/offered holds a folder for each checkpoint, complete, to be published and removed by the worker."""


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """A line on the pipe; `type` is the class's name in lower case."""


class Phase(Message, frozen=True):
    """A trainer entered a phase; `total_steps` is known from training on."""

    phase: Literal["preparing", "loading", "training", "saving"]
    total_steps: int | None = None
    resumed_from_step: int | None = None


class Metrics(Message, frozen=True):
    """One optimizer step."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    """Tokens seen since the job's first step, padding not counted."""
    tokens_per_second: float
    seconds: float
    """Trained since the job's first step, evaluations and checkpoints included."""
    memory_bytes: int
    """Peak so far: allocated on the device, or resident on a CPU."""
    mean_token_accuracy: float | None = None
    reward_accuracy: float | None = None
    """Of pairs of answers: how often the chosen one has the higher reward."""
    reward_margin: float | None = None
    """By how much, in the mean; of single answers, the wanted ones' reward over the others'."""
    mean_reward: float | None = None
    """Of graded answers, and the rest of reinforcement."""
    reward_std: float | None = None
    equal_rewards: float | None = None
    """Share of the answers whose whole group has one reward, from which nothing is learnt."""
    kl: float | None = None
    entropy: float | None = None
    completion_length: float | None = None
    """In tokens, the mean."""
    completions_cut: float | None = None
    """Share of the answers that were broken off."""
    ungraded: float | None = None
    """Share of the answers that the grader could not grade, whose reward is 0."""


class Shrunk(Message, frozen=True):
    """There was no memory for as many rows at a time: a step is made of more and smaller parts from here on."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int


class Probed(Message, frozen=True):
    """The longest batch, an evaluation's and a save went well before the first step."""

    memory_bytes: int
    """Peak of it: allocated on the device, or resident on a CPU."""
    seconds: float


class Eval(Message, frozen=True):
    """Loss on the validation file, or what answers to its prompts are worth."""

    step: int
    loss: float
    mean_token_accuracy: float | None = None
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    mean_reward: float | None = None
    reward_std: float | None = None
    kl: float | None = None
    entropy: float | None = None
    completion_length: float | None = None
    completions_cut: float | None = None
    ungraded: float | None = None


class Evaluating(Message, frozen=True):
    """An evaluation gets on; said every few seconds while it does."""


class Checkpoint(Message, frozen=True):
    """A checkpoint was written and verified; `name` is its folder in WORKDIR/checkpoints, and in WORKDIR/offered."""

    step: int
    name: str


class Notice(Message, frozen=True):
    """A sentence for the job's events."""

    level: Literal["info", "warn", "error"]
    message: str


class Done(Message, frozen=True):
    """WORKDIR/result (or WORKDIR/prepared.json) is complete."""


class NoSpace(Message, frozen=True):
    """The trainer has stopped: its disk has no room for what is to be saved next, or had none."""

    needed_bytes: int | None = None
    """None: a write failed; nobody has asked before."""


class Stopped(Message, frozen=True):
    """The trainer was told to stop, and did at this step."""

    step: int


class Failed(Message, frozen=True):
    """The trainer gives up; `retryable` says whether another attempt could help.

    `suggestion`: what to try, where the trainer knows better than the code says.
    """

    code: Code
    message: str
    param: str | None = None
    retryable: bool = False
    suggestion: str | None = None


AnyMessage = (
    Phase | Shrunk | Probed | Metrics | Eval | Evaluating | Checkpoint | Notice | Done | NoSpace | Stopped | Failed
)

_decoder = msgspec.json.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """One line, its newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> AnyMessage:
    """Raises `msgspec.DecodeError` for a line that no trainer of this version writes."""
    message: AnyMessage = _decoder.decode(line)
    return message
