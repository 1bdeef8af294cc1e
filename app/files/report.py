"""What is said of a file before it is trained on: the document that preparing writes and `GET …/report` answers.

Fields that this version does not know are ignored: a newer one may have written it.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.files.findings import Code, Severity

FileName = Literal["training_file", "validation_file"]
LISTED = 20
"""Places named of a kind of finding; all of them are in the JSONL."""


class Part(BaseModel):
    """A piece of a report."""

    model_config = ConfigDict(frozen=True)


class Bin(Part):
    """Rows of a range of lengths, in tokens; `upto` belongs to it."""

    above: int
    upto: int
    rows: int


class Lengths(Part):
    """How long the rows are, in tokens, before anything is cut."""

    min: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    max: int
    histogram: list[Bin]


class Truncated(Part):
    """What is lost where rows are cut to `max_length`."""

    rows: int
    prompt_tokens: int = Field(description="Lost of what the model only reads.")
    trained_tokens: int = Field(description="Lost of what it shall learn.")


class PreparedFile(Part):
    """Rows, tokenised and labelled, as the trainer reads them."""

    rows: int
    tokens: int
    trained_tokens: int = Field(description="Tokens that carry a label, in one pass over the rows.")
    longest_row: int = Field(description="Tokens of the longest row, or of the longest pack; after truncation.")
    truncated_rows: int = 0
    wanted: int | None = Field(None, description="Of unpaired rows those with the label `true`.")
    packs: int | None = Field(None, description="Sequences that its rows were packed into; None: each row is its own.")
    packing_saves: float = Field(
        0.0, description="Share of the tokens that a run without packing computes for padding alone."
    )
    sha256: str = Field(description="Digest of the Arrow file with the columns `input_ids` and `labels`.")
    bytes: int = Field(0, description="Of that file; 0: from before it was noted.")


class Conversion(Part):
    """How rows of another form became rows that training knows, by the first of them."""

    what: str
    before: Any
    after: Any


class Container(Part):
    """What a file is."""

    container: str | None
    compression: str | None
    shape: str | None
    conversion: Conversion | None
    ignored_fields: dict[str, int] = Field(description="Fields that nothing reads, by how many rows have them.")


class Where(Part):
    """A finding's place."""

    row: int | None
    line: int | None
    other: int | None = None


class Found(Part):
    """All findings of a kind in a file."""

    file: FileName
    code: Code
    severity: Severity
    rows: int
    share: float = Field(description="Of the file's rows.")
    example: str = Field(description="The first of them, in words.")
    first: list[Where] = Field(description=f"The first {LISTED}.")


class Rows(Part):
    """What becomes of a file's rows."""

    total: int
    used: int = Field(description="Tokenised: trained on, or validated with.")
    held_out: int = Field(0, description="Kept for validation.")
    refused: int = Field(description="With an error; a file with one is refused.")


class FilePart(Part):
    """One file, or what of it is trained on."""

    format: Container
    rows: Rows
    tokens: int
    trained_tokens: int
    trained_share: float
    lengths: Lengths | None = Field(description="None where no row could be tokenised.")
    truncated: Truncated


class Resolved(Part):
    """What `auto` became."""

    max_length: int
    packing: bool
    holdout: float


class Refusal(Part):
    """A reason why this cannot be trained on."""

    file: FileName
    code: Code
    message: str


class Overlap(Part):
    """Training rows that are in another file too."""

    name: str = Field(description="`validation_file`, `holdout`, or the benchmark's.")
    exact: int
    near: int = Field(description="Similar to at least 0.8, and not the same.")


class Report(Part):
    """All that is known of a training file, and of its validation file where there is one."""

    key: str = Field(description="Digest of everything that the report depends on.")
    method: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    template: str | None = Field(description="How it is known what of a conversation is an answer.")
    settings: dict[str, Any]
    resolved: Resolved
    training: FilePart
    validation: FilePart | None
    findings: list[Found]
    overlaps: list[Overlap]
    refusals: list[Refusal]
    train_set: PreparedFile | None = Field(description="None where no row could be tokenised.")
    validation_set: PreparedFile | None = Field(description="Of the validation file, or of the rows held out.")
    notes: list[str] = Field([], description="What else is worth knowing, such as what was only sampled.")
