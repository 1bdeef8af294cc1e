"""How an upload and its parts look in a request and in a response."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.files.models import File
from app.files.schemas import ExpiresAfter, FileRead
from app.jobs.parts import SpecPart
from app.uploads.models import Upload, UploadPart

Line = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]


class UploadCreate(SpecPart):
    """A file announced."""

    bytes: Annotated[int, Field(ge=1, le=2**50, description="Of all parts together.")]
    filename: Line
    mime_type: Line
    purpose: Line
    expires_after: ExpiresAfter | None = None


class UploadComplete(SpecPart):
    """The parts, in their order."""

    part_ids: Annotated[list[Line], Field(min_length=1, max_length=100_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = Field(
        None, description="Of the whole file, in hex."
    )


class UploadRead(BaseModel):
    """OpenAI's upload object."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    mime_type: str
    status: str
    file: FileRead | None

    @classmethod
    def of(cls, upload: Upload, file: File | None) -> Self:
        """From the rows."""
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at.timestamp()),
            expires_at=int(upload.expires_at.timestamp()),
            filename=upload.filename,
            purpose=upload.purpose,
            mime_type=upload.mime_type,
            status=upload.status,
            file=FileRead.of(file) if file else None,
        )


class UploadPartRead(BaseModel):
    """OpenAI's part object."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: UploadPart) -> Self:
        """From the row."""
        return cls(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload_id)
