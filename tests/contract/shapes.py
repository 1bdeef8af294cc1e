"""OpenAI's contract as types: each field that it names, none with a default, because null is sent and not left out.

They read an answer's JSON as it is on the wire: a number in quotes, a time in milliseconds, an id of another kind is no
match. What the service sends beside these fields is its own affair.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

import openai
from pydantic import BaseModel, ConfigDict, Field

S = TypeVar("S", bound="Shape")
T = TypeVar("T")

Seconds = Annotated[int, Field(gt=1_700_000_000, lt=4_000_000_000)]
"""Since 1970; milliseconds would be beyond."""


def kind(prefix: str) -> Any:
    """Of an id, which says what it is of."""
    return Field(pattern=rf"^{prefix}[A-Za-z0-9]+$")


FileId = Annotated[str, kind("file-")]
JobId = Annotated[str, kind("ftjob-")]
Count = Annotated[int, Field(ge=0)]


class Shape(BaseModel):
    """Nothing is coerced."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Page(Shape, Generic[T]):
    """A list: `after` is the id of its last item."""

    object: Literal["list"]
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


class WholeList(Shape, Generic[T]):
    """A list that has no pages."""

    object: Literal["list"]
    data: list[T]


class Error(Shape):
    """Inside the envelope, which has nothing beside it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    message: Annotated[str, Field(min_length=1)]
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "server_error"
    ]
    param: str | None
    code: str | None


class Envelope(Shape):
    """Of every answer that is a refusal."""

    model_config = ConfigDict(strict=True, extra="forbid")

    error: Error


class File(Shape):
    """An uploaded file, or a job's metrics."""

    id: FileId
    object: Literal["file"]
    bytes: Count
    created_at: Seconds
    filename: str
    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "fine-tune-results"]
    status: Literal["uploaded", "processed", "error"]
    expires_at: Seconds | None
    status_details: str | None


class FileDeleted(Shape):
    id: FileId
    object: Literal["file"]
    deleted: Literal[True]


class Upload(Shape):
    """A file that comes in parts."""

    id: Annotated[str, kind("upload_")]
    object: Literal["upload"]
    bytes: Count
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class Part(Shape):
    id: Annotated[str, kind("part_")]
    object: Literal["upload.part"]
    created_at: Seconds
    upload_id: Annotated[str, kind("upload_")]


class Hyperparameters(Shape):
    """The three that OpenAI has for every method."""

    n_epochs: Literal["auto"] | int
    batch_size: Literal["auto"] | int
    learning_rate_multiplier: Literal["auto"] | float


class Supervised(Shape):
    hyperparameters: Hyperparameters


class Method(Shape):
    type: Literal["supervised"]
    supervised: Supervised


class JobError(Shape):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class Job(Shape):
    """The fields that OpenAI's specification requires, and below them its optional ones."""

    id: JobId
    object: Literal["fine_tuning.job"]
    created_at: Seconds
    finished_at: Seconds | None
    model: str
    fine_tuned_model: str | None
    organization_id: Annotated[str, Field(min_length=1)]
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobError | None
    training_file: FileId
    validation_file: FileId | None
    hyperparameters: Hyperparameters
    result_files: list[FileId]
    trained_tokens: Count | None
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)]

    method: Method
    estimated_finish: Seconds | None
    integrations: Annotated[list[Any], Field(max_length=0)] | None
    metadata: dict[str, str] | None


class Event(Shape):
    """An entry of a job's history."""

    id: Annotated[str, kind("ftevent-")]
    object: Literal["fine_tuning.job.event"]
    created_at: Seconds
    level: Literal["info", "warn", "error"]
    message: Annotated[str, Field(min_length=1)]
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetrics(Shape):
    step: Count
    train_loss: float | None
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None


class Checkpoint(Shape):
    """A model from the middle of a job."""

    id: Annotated[str, kind("ftckpt_")]
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: Seconds
    fine_tuning_job_id: JobId
    fine_tuned_model_checkpoint: Annotated[str, Field(pattern=r"^ft:[^:]+:[^:]+:[^:]*:[^:]+:ckpt-step-\d+$")]
    step_number: Count
    metrics: CheckpointMetrics


class Permission(Shape):
    """Another project's right to use a model."""

    id: Annotated[str, kind("cp_")]
    object: Literal["checkpoint.permission"]
    created_at: Seconds
    project_id: Annotated[str, kind("proj_")]


class PermissionDeleted(Shape):
    id: Annotated[str, kind("cp_")]
    object: Literal["checkpoint.permission"]
    deleted: Literal[True]


class Model(Shape):
    """A base or a result."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: Annotated[str, Field(min_length=1)]
    shutdown_date: str | None


class ModelDeleted(Shape):
    id: str
    object: Literal["model"]
    deleted: Literal[True]


class GraderErrors(Shape):
    """Fourteen flags, three of them with words."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderMetadata(Shape):
    name: str
    type: str
    execution_time: Annotated[float, Field(ge=0)]
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None
    errors: GraderErrors


class GraderRun(Shape):
    """What a grader makes of a sample."""

    reward: float
    sub_rewards: dict[str, float]
    metadata: GraderMetadata
    model_grader_token_usage_per_model: dict[str, Any]


class Endpoint(Shape):
    """An address that is told how jobs end."""

    id: Annotated[str, kind("we_")]
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: Annotated[list[str], Field(min_length=1)]
    created_at: Seconds
    updated_at: Seconds
    signing_secret_hint: str


class EndpointWithSecret(Endpoint):
    signing_secret: Annotated[str, Field(pattern=r"^whsec_[A-Za-z0-9+/]+=*$")]


class Subject(Shape):
    model_config = ConfigDict(strict=True, extra="forbid")

    id: JobId


class WebhookEvent(Shape):
    """The body of a delivery."""

    id: Annotated[str, kind("evt_")]
    object: Literal["event"]
    created_at: Seconds
    type: Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
    data: Subject


def read(response: Any, shape: type[S], *stock: type[openai.BaseModel]) -> S:
    """An answer of status 200, read as the contract has it, and as the stock client's own type has it."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    sent = response.json()
    for one in sent["data"] if sent.get("object") == "list" else [sent]:
        for model in stock:
            model.model_validate(one, strict=True)
    return shape.model_validate(sent)


def refusal(response: Any, status: int = 400) -> Error:
    """The envelope of an answer with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    return Envelope.model_validate(response.json()).error
