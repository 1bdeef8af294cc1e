"""The document that makes a folder of weights a result: written last, at a key made of job and attempt.

It holds everything its registry row needs, so that a crash between the two is rolled forward from it.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.parts import OF_ANY_VERSION
from app.jobs.prepared import BaseIdentity
from app.jobs.spec import JobSpec
from app.storage import Storage


class PublishedFile(BaseModel):
    """One file of a result."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str


class TrainingFile(BaseModel):
    """What a result was trained on."""

    model_config = ConfigDict(frozen=True)

    id: str
    sha256: str


class Evaluated(BaseModel):
    """A step, and what an evaluation on the validation rows found."""

    model_config = ConfigDict(frozen=True)

    step: int
    eval_loss: float | None = Field(description="None where the step was not evaluated.")
    eval_reward: float | None = Field(None, description="Of answers to the validation prompts, where they were graded.")

    @property
    def measured(self) -> float | None:
        """What steps are compared by."""
        return self.eval_loss if self.eval_reward is None else self.eval_reward


class TrainingReport(BaseModel):
    """The trainer's `metrics.json`: what it measured of its own run, up to a result or a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="allow")

    steps: int
    loss_first: float
    loss_last: float
    eval_loss: float | None = None
    eval_reward: float | None = None
    reward_first: float | None = None
    """The mean reward of the first step's answers, and of the last one's, where they were graded."""
    reward_last: float | None = None
    published: Literal["best", "last"] | None = Field(
        None, description="Which step's weights a result has; `eval_loss` is theirs."
    )
    best: Evaluated | None = Field(
        None, description="By validation loss, or reward where there is one; None where nothing was evaluated."
    )
    last: Evaluated | None = None
    tokens: int
    trained_tokens: int
    train_seconds: float
    peak_memory_bytes: int
    trained_parameters: int
    all_parameters: int
    device: str
    precision: str
    versions: dict[str, str]


class Manifest(BaseModel):
    """A result, whole."""

    model_config = ConfigDict(frozen=True)

    id: str
    project_id: str
    job_id: str
    attempt: int
    step: int | None = None
    parent: str | None = None
    kind: Literal["adapter", "full"]
    base: BaseIdentity
    training_file: TrainingFile
    spec: JobSpec
    report: TrainingReport
    files: list[PublishedFile]

    @property
    def key(self) -> str:
        """Where this manifest lies; another attempt's lies beside it, never under it."""
        if self.step is not None:
            return f"checkpoints/{self.job_id}/{self.step:09d}-{self.attempt:06d}.json"
        return f"{prefix(self.job_id)}/{self.attempt:06d}.json"

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)


def prefix(job_id: str) -> str:
    """Where the manifests of a job's results lie, an attempt's each."""
    return f"models/{job_id}"


def newest_whole(storage: Storage, job_id: str) -> Manifest | None:
    """The last manifest of a job whose blobs are all there: what an attempt before this one has published."""
    for key in reversed(storage.manifests(prefix(job_id))):
        document = storage.read_manifest(key)
        if document is None:
            continue
        manifest = Manifest.model_validate(document, context=OF_ANY_VERSION)
        if is_whole(manifest, storage):
            return manifest
    return None


def is_whole(manifest: Manifest, storage: Storage) -> bool:
    """Whether all its blobs are there."""
    return all(storage.has(file.sha256, file.bytes) for file in manifest.files)


def as_document(manifest: Manifest) -> dict[str, Any]:
    """The JSON that is stored."""
    return manifest.model_dump(mode="json")
