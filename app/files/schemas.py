"""How a file looks in a response."""

from typing import Literal, Self

from pydantic import BaseModel

from app.files.models import File


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
    expires_at: int | None = None
    sha256: str
    rows: int | None

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
            sha256=file.sha256,
            rows=file.rows,
        )


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
