"""How a job, its events and its attempts look in a response."""

from typing import Any, Literal, Self

from pydantic import BaseModel

from app.jobs.models import Job, JobEvent
from app.jobs.status import JobStatus
from app.work.models import Attempt, Work


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


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
    evaluation: dict[str, Any] | None
    resources: dict[str, Any]
    warnings: list[dict[str, Any]]
    progress: dict[str, Any] | None
    queue: str
    desired: str
    started_at: int | None
    base: dict[str, Any] | None
    """Identity of the base, once preparing has computed it."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """From the row; numbers stand where `auto` stood, once they are known."""
        spec = job.resolved or job.spec
        hyperparameters = spec["method"]["supervised"]["hyperparameters"]
        return cls(
            id=job.id,
            created_at=int(job.created_at.timestamp()),
            finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
            model=spec["model"],
            fine_tuned_model=job.fine_tuned_model,
            organization_id=job.project_id,
            status=job.status,
            error=JobError.model_validate(job.error) if job.error else None,
            training_file=spec["training_file"],
            validation_file=spec["validation_file"],
            hyperparameters={
                name: hyperparameters[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")
            },
            result_files=[],
            trained_tokens=job.trained_tokens,
            seed=spec["seed"],
            method=spec["method"],
            estimated_finish=(job.progress or {}).get("estimated_finish") if job.status == JobStatus.RUNNING else None,
            integrations=spec["integrations"],
            metadata=spec["metadata"],
            suffix=spec["suffix"],
            tuning=spec["tuning"],
            evaluation=spec["evaluation"],
            resources=spec["resources"],
            warnings=job.warnings or [],
            progress=job.progress,
            queue=job.queue,
            desired=job.desired or "run",
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
    error: dict[str, Any] | None
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
            error=attempt.error,
            resumed_from_step=attempt.resumed_from_step,
        )


class AttemptList(BaseModel):
    """All attempts of a job, oldest first."""

    object: Literal["list"] = "list"
    data: list[AttemptRead]
    has_more: Literal[False] = False
