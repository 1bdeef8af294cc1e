"""How a file looks in a response."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.files.models import File


class ExpiresAfter(BaseModel):
    """When a file shall go by itself."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000, description="An hour to 30 days.")]


class FileSource(BaseModel):
    """A file that the server shall fetch."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(max_length=1024, description="`hf://datasets/org/name/file` or `s3://bucket/file`.")]
    purpose: str
    expires_after: ExpiresAfter | None = None


class FileRead(BaseModel):
    """OpenAI's file object, with its digest."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    status_details: str | None
    expires_at: int | None
    sha256: str
    rows: int | None
    source: str | None

    @classmethod
    def of(cls, file: File) -> Self:
        """From the row."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at.timestamp()),
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            status_details=file.status_details,
            expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
            sha256=file.sha256,
            rows=file.rows,
            source=file.source,
        )


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
