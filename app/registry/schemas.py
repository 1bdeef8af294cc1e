"""How models look in a response: in OpenAI's list, and in full in the registry."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from app.jobs.parts import SpecPart, Text
from app.registry.catalogue import BaseModelEntry
from app.registry.models import CheckpointPermission, RegisteredModel
from app.registry.service import Entry


class ModelRead(BaseModel):
    """OpenAI's model object: a base or a result."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None
    """When OpenAI withdraws a model; nothing is withdrawn here by itself."""


class ModelDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(BaseModel):
    """All models; OpenAI does not page them."""

    object: Literal["list"] = "list"
    data: list[ModelRead]

    @classmethod
    def of(cls, bases: list[BaseModelEntry], results: list[Entry]) -> Self:
        """Bases first, then results."""
        return cls(data=[base_read(base) for base in bases] + [result_read(result) for result in results])


def base_read(base: BaseModelEntry) -> ModelRead:
    """A base model as OpenAI's object."""
    return ModelRead(id=base.id, created=int(base.created_at.timestamp()), owned_by=base.owned_by)


def result_read(result: RegisteredModel | Entry) -> ModelRead:
    """A result as OpenAI's object."""
    return ModelRead(id=result.id, created=int(result.created_at.timestamp()), owned_by=result.project_id)


class VerifiedFile(BaseModel):
    """A file, and what is wrong with it."""

    name: str
    problem: str | None
    """Null where it is what was published, to the byte."""


class VerificationRead(BaseModel):
    """Whether the storage still has what was published."""

    model: str
    object: Literal["registry.verification"] = "registry.verification"
    ok: bool
    files: list[VerifiedFile]

    @classmethod
    def of(cls, model: str, problems: dict[str, str | None]) -> Self:
        """`problems`: by the files' names."""
        files = [VerifiedFile(name=name, problem=problem) for name, problem in problems.items()]
        return cls(model=model, ok=all(file.problem is None for file in files), files=files)


class RegisteredModelRead(BaseModel):
    """Everything the registry knows of a result."""

    id: str
    object: Literal["registry.model"] = "registry.model"
    created_at: int
    kind: str
    job_id: str
    step: int | None
    """Of a checkpoint; null for a job's result."""
    parent: str | None
    """The registry model that its job started from."""
    base: dict[str, Any]
    method: str
    tuning: dict[str, Any]
    trained_parameters: int
    all_parameters: int
    trained_share: float
    """Trained parameters over all, 0 to 1."""
    bytes: int
    files: list[dict[str, Any]]
    manifest_sha256: str
    training_file: dict[str, Any]
    seed: int
    versions: dict[str, str]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, row: RegisteredModel) -> Self:
        """From the row."""
        return cls(
            id=row.id,
            created_at=int(row.created_at.timestamp()),
            kind=row.kind,
            job_id=row.job_id,
            step=row.step,
            parent=row.parent,
            base=row.base,
            method=row.method,
            tuning=row.tuning,
            trained_parameters=row.trained_parameters,
            all_parameters=row.all_parameters,
            trained_share=row.trained_parameters / row.all_parameters,
            bytes=row.bytes,
            files=row.files,
            manifest_sha256=row.manifest_sha256,
            training_file=row.training_file,
            seed=row.seed,
            versions=row.versions,
            metrics=row.metrics,
        )


class PermissionsCreate(SpecPart):
    """Who shall be allowed to use a model."""

    project_ids: Annotated[list[Text], Field(min_length=1, max_length=100)]


class PermissionRead(BaseModel):
    """OpenAI's permission object."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str

    @classmethod
    def of(cls, row: CheckpointPermission) -> Self:
        """From the row."""
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), project_id=row.project_id)


class PermissionDeleted(BaseModel):
    """The answer to a revocation."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True
