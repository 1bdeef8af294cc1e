"""How a job, its events and its attempts look in a response."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app.failures import SUGGESTIONS
from app.jobs.models import Job, JobCheckpoint, JobEvent, Label
from app.jobs.status import JobStatus
from app.jobs.waiting import Reason, Wait
from app.work.models import Attempt, Work


class JobError(BaseModel):
    """Why a job failed, or an attempt at it."""

    code: str = Field(description="For programs: `out_of_memory`, `worker_lost`, …")
    message: str = Field(description="The cause, in a sentence or two.")
    param: str | None = Field(description="The field of the spec that it comes from, by its path.")
    suggestion: str | None = Field(description="What to try; null where nobody can say.")
    log_lines: list[str] | None = Field(
        description="What the attempt's trainer printed last: at most 20 lines and 4 kB, of which the first may be cut."
        " Empty where no trainer had a part in it; null in a list of jobs."
    )

    @classmethod
    def of(cls, error: dict[str, Any], *, with_log: bool = True) -> Self:
        """As it was kept. Before there were suggestions and lines, none were."""
        return cls(
            code=error["code"],
            message=error["message"],
            param=error["param"],
            suggestion=error.get("suggestion") or SUGGESTIONS.get(error["code"]),
            log_lines=error.get("log_lines", []) if with_log else None,
        )


class ProbeRead(BaseModel):
    """The longest batch, a step of the optimizer, an evaluation's batch and a save, before the first step."""

    memory_bytes: int
    memory_gib: float
    """Peak: allocated on the device, or resident on a CPU. Beside the plan's `memory.train_peak_gib`."""
    seconds: float
    per_device_train_batch_size: int
    """Of the batch; fewer than was planned where `resources.on_oom` had it shrink."""


class Interval(BaseModel):
    """Unix seconds."""

    earliest: int
    latest: int


class QueueRead(BaseModel):
    """Where a job waits, why, and for how long."""

    name: str
    """The worker class that trains it."""
    position: int | None
    """1: next. Null: it does not wait in a queue, or is behind more than are counted."""
    waiting_for: Reason | None
    """`files` to be prepared, a `retry` after a failure, a `worker` of its class, `quota`, its `turn`, `resume`, or
    `no_space`: room on a disk."""
    message: str | None
    retry_at: int | None
    starts_at_estimate: Interval | None
    """By the plans and the progress of what is ahead; more urgent work may come."""
    no_estimate_because: str | None

    @classmethod
    def of(cls, name: str, wait: Wait) -> Self:
        """From what was found of its wait."""
        return cls(
            name=name,
            position=wait.position,
            waiting_for=wait.reason,
            message=wait.message,
            retry_at=wait.retry_at,
            starts_at_estimate=Interval(earliest=wait.starts[0], latest=wait.starts[1]) if wait.starts else None,
            no_estimate_because=wait.no_forecast,
        )


class JobRead(BaseModel):
    """OpenAI's fine-tuning job, and what this service adds below."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    error: JobError | None
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    method: dict[str, Any]
    estimated_finish: int | None
    integrations: list[Any] | None
    metadata: dict[str, str] | None

    suffix: str | None
    tuning: dict[str, Any]
    evaluation: dict[str, Any]
    resources: dict[str, Any]
    warnings: list[dict[str, Any]]
    progress: dict[str, Any] | None
    plan: dict[str, Any] | None
    """What it was planned to take, once its files are prepared, as `POST /v1/fine_tuning/plans` answers."""
    probe: ProbeRead | None
    """What its longest batch took, which is known before its first step."""
    queue: QueueRead
    desired: str
    paused_by: str | None
    started_at: int | None
    base: dict[str, Any] | None
    """Identity of the base, once preparing has computed it."""

    @classmethod
    def of(cls, job: Job, wait: Wait, *, with_log: bool = True) -> Self:
        """From the row; numbers stand where `auto` stood, once they are known.

        `with_log`: with the last lines of a job that failed, which are too much for a list that is asked for often.
        """
        spec = job.resolved or job.spec
        hyperparameters = spec["method"][spec["method"]["type"]]["hyperparameters"]
        return cls(
            id=job.id,
            created_at=int(job.created_at.timestamp()),
            finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
            model=spec["model"],
            fine_tuned_model=job.fine_tuned_model,
            organization_id=job.project_id,
            status=job.status,
            error=JobError.of(job.error, with_log=with_log) if job.error else None,
            training_file=spec["training_file"],
            validation_file=spec["validation_file"],
            hyperparameters={
                name: hyperparameters[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")
            },
            result_files=job.result_files or [],
            trained_tokens=job.trained_tokens,
            seed=spec["seed"],
            method=spec["method"],
            estimated_finish=(job.progress or {}).get("estimated_finish") if job.status == JobStatus.RUNNING else None,
            integrations=spec["integrations"],
            metadata=spec["metadata"],
            suffix=spec["suffix"],
            tuning=spec["tuning"],
            evaluation=spec["evaluation"] or {},  # None: from before there was a holdout
            resources=spec["resources"],
            warnings=job.warnings or [],
            progress=job.progress,
            plan=job.plan,
            probe=ProbeRead.model_validate(job.probe) if job.probe else None,
            queue=QueueRead.of(job.queue, wait),
            desired=job.desired or "run",
            paused_by=job.paused_by,
            started_at=int(job.started_at.timestamp()) if job.started_at else None,
            base=job.prepared["base"] if job.prepared else None,
        )


class EventRead(BaseModel):
    """OpenAI's event object."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """From the row."""
        return cls(
            id=event.id,
            created_at=int(event.created_at.timestamp()),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class CheckpointMetrics(BaseModel):
    """At a checkpoint's step, in OpenAI's names; null where it was not measured there."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_mean_reward: float | None = None
    valid_mean_reward: float | None = None


class CheckpointRead(BaseModel):
    """OpenAI's checkpoint object."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: CheckpointMetrics
    labels: list[Label]
    """`best` by validation loss or reward, which the result has the weights of; `last`: where training ended, or is."""

    @classmethod
    def of(cls, checkpoint: JobCheckpoint, labels: list[Label]) -> Self:
        """From the row."""
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at.timestamp()),
            fine_tuning_job_id=checkpoint.job_id,
            fine_tuned_model_checkpoint=checkpoint.model,
            step_number=checkpoint.step,
            metrics=CheckpointMetrics.model_validate(checkpoint.metrics),
            labels=labels,
        )


class StreamTokenRead(BaseModel):
    """A token for `?token=`, shown once."""

    object: Literal["fine_tuning.job.stream_token"] = "fine_tuning.job.stream_token"
    token: str
    expires_at: int

    @classmethod
    def of(cls, token: str, expires_at: datetime) -> Self:
        """As it was made."""
        return cls(token=token, expires_at=int(expires_at.timestamp()))


class MetricsEntry(BaseModel):
    """A step's numbers; null for what was not measured at it."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None
    """Of pairs of answers: how often the chosen one has the higher reward."""
    train_reward_margin: float | None = None
    """By how much, in the mean; of single answers, the wanted ones' reward over the others'."""
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None
    train_mean_reward: float | None = None
    """Of the answers that a grader rewarded."""
    train_reward_std: float | None = None
    train_equal_rewards: float | None = None
    """Share of the answers whose whole group has one reward, from which nothing is learnt."""
    train_kl: float | None = None
    """From the model before training, where there is a beta."""
    train_entropy: float | None = None
    train_completion_length: float | None = None
    """In tokens, the mean."""
    train_completions_cut: float | None = None
    """Share of the answers that were broken off."""
    train_ungraded: float | None = None
    """Share of the answers that the grader could not grade, whose reward is 0."""
    valid_mean_reward: float | None = None
    valid_reward_std: float | None = None
    valid_completion_length: float | None = None
    valid_completions_cut: float | None = None
    valid_ungraded: float | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    """Seen since the job's first step."""
    tokens_per_second: float | None = None
    seconds: float | None = None
    """Trained since the job's first step."""
    memory_bytes: int | None = None
    """Peak so far."""


class MetricsRead(BaseModel):
    """A job's series."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    fine_tuning_job_id: str
    steps: int
    """Measured, before thinning."""
    total_steps: int | None
    data: list[MetricsEntry]

    @classmethod
    def of(cls, job: Job, entries: list[dict[str, Any]], *, steps: int) -> Self:
        """From a series, thinned or not."""
        return cls(
            fine_tuning_job_id=job.id,
            steps=steps,
            total_steps=(job.progress or {}).get("total_steps"),
            data=[MetricsEntry.model_validate(entry) for entry in entries],
        )


class AttemptRead(BaseModel):
    """One worker's try: who, when, how it ended."""

    object: Literal["fine_tuning.job.attempt"] = "fine_tuning.job.attempt"
    kind: str
    number: int
    host: str
    device: dict[str, Any]
    started_at: int
    ended_at: int | None
    outcome: str | None
    error: JobError | None
    resumed_from_step: int | None

    @classmethod
    def of(cls, work: Work, attempt: Attempt) -> Self:
        """From the rows."""
        return cls(
            kind=work.kind,
            number=attempt.number,
            host=attempt.host,
            device=attempt.device,
            started_at=int(attempt.started_at.timestamp()),
            ended_at=int(attempt.ended_at.timestamp()) if attempt.ended_at else None,
            outcome=attempt.outcome,
            error=JobError.of(attempt.error) if attempt.error else None,
            resumed_from_step=attempt.resumed_from_step,
        )


class AttemptList(BaseModel):
    """All attempts of a job, oldest first."""

    object: Literal["list"] = "list"
    data: list[AttemptRead]
    has_more: Literal[False] = False
