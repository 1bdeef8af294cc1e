"""How a report and a preview look in a response, and how they are asked for."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.files.report import Report
from app.files.spec import Auto, DataSpec, HoldoutShare, Method
from app.jobs.methods import LARGEST_MICRO_BATCH, SHORTEST_MAX_LENGTH
from app.reports.models import FilePreview, FileReport
from app.storage import Blob

MOST_ROWS = 20
"""Of a preview."""


class Asked(BaseModel):
    """The settings that a report depends on; those of a job's spec, with its names."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=256, description="As in a job's spec.")]
    method: Annotated[Method, Field(description="Which rows are taken, and what of them is trained.")] = "supervised"
    max_length: Annotated[
        Auto | Annotated[int, Field(ge=SHORTEST_MAX_LENGTH, le=1_048_576)],
        Field(description="Tokens a row may have; auto: at most the model's context."),
    ] = "auto"
    truncate: Annotated[bool, Field(description="Cut rows longer than `max_length` instead of refusing them.")] = False
    train_on: Annotated[Auto | Literal["completion", "all"], Field(description="The answers, or every token.")] = "auto"
    packing: Annotated[Auto | bool, Field(description="Whether rows share sequences; auto: where it is worth it.")] = (
        "auto"
    )
    per_device_train_batch_size: Annotated[
        int, Field(ge=1, le=LARGEST_MICRO_BATCH, description="Rows that are padded together where none are packed.")
    ] = 2
    holdout: Annotated[
        Auto | HoldoutShare, Field(description="Share kept for validation; auto: a tenth from 100 rows on.")
    ] = "auto"
    validation_file: Annotated[str | None, Field(max_length=256, description="To be compared with.")] = None

    @property
    def data(self) -> DataSpec:
        """As preparing reads it."""
        given = self.model_dump(exclude={"validation_file", "rows", "lines"})
        if self.train_on == "auto":
            given["train_on"] = "completion"
        return DataSpec.model_validate(given if self.validation_file is None else {**given, "holdout": 0.0})


class PreviewAsked(Asked):
    """Which rows to show, by number or by line; the first three where neither is given."""

    rows: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=MOST_ROWS)] | None = None
    lines: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=MOST_ROWS)] | None = None

    @model_validator(mode="after")
    def rows_are_named_one_way(self) -> Self:
        """Refuse rows by number and by line at once."""
        if self.rows and self.lines:
            raise PydanticCustomError("two_ways", "{message}", {"field": "lines", "message": "Send rows or lines."})
        return self

    @property
    def wanted(self) -> dict[str, list[int]]:
        """As a worker reads it."""
        return {"lines": self.lines} if self.lines else {"rows": self.rows or [1, 2, 3]}


class ReportRead(Report):
    """A report that is made."""

    object: Literal["file.report"] = "file.report"
    id: str
    file_id: str
    status: Literal["ok", "refused"] = Field(description="Whether a job with these settings would train.")
    created_at: int
    findings_bytes: int = Field(description="Of the JSONL at `…/report/findings`, which has every finding.")

    @classmethod
    def of(cls, made: FileReport, report: Report, findings: Blob) -> Self:
        """From the row and its set."""
        assert made.finished_at is not None  # noqa: S101  it is made
        return cls(
            **dict(report),
            id=made.id,
            file_id=made.file_id,
            status="refused" if report.refusals else "ok",
            created_at=int(made.finished_at.timestamp()),
            findings_bytes=findings.bytes,
        )


class Pending(BaseModel):
    """It is being made: ask again after `retry-after` seconds."""

    object: Literal["file.report", "file.preview"]
    id: str
    file_id: str
    status: Literal["in_progress"] = "in_progress"


class TokenRead(BaseModel):
    """A token, and whether the model learns to say it."""

    id: int
    text: str
    trained: bool


class SequenceRead(BaseModel):
    """What the model sees of a row, or of the pack that the row is in."""

    name: str = Field(description="`text`, or of a preference `chosen` and `rejected`.")
    text: str
    tokens: list[TokenRead]
    cut: int = Field(0, description="Tokens at the end that are not shown.")


class PreviewRowRead(BaseModel):
    """A row as it is trained on."""

    row: int | None
    line: int | None
    set: Literal["training", "validation"] | None = Field(description="None: it is in neither; `problem` says why.")
    pack: list[int] | None = Field(None, description="The rows that are packed together with it, itself among them.")
    sequences: list[SequenceRead]
    problem: str | None = None


class PreviewRead(BaseModel):
    """Rows, token by token."""

    object: Literal["file.preview"] = "file.preview"
    id: str
    file_id: str
    report_id: str
    data: list[PreviewRowRead]

    @classmethod
    def of(cls, made: FilePreview, report: FileReport) -> Self:
        """From the row."""
        rows: list[Any] = made.rows or []
        return cls(
            id=made.id,
            file_id=report.file_id,
            report_id=report.id,
            data=[PreviewRowRead.model_validate(row) for row in rows],
        )
