"""What is known here of the rows, gathered for a recommendation."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.auth import Project
from app.files import formats
from app.files import service as files
from app.files.containers import Container
from app.files.formats import CHATS, PAIRS, TAKES
from app.files.models import File
from app.files.rows import ChatRow
from app.files.shapes import Shape
from app.planning.situations import Rows
from app.plans.bases import Known
from app.reports import service as reports
from app.storage import Damaged, get_storage

BYTES_A_TOKEN = 4
"""Of English some 4 characters; what is not learnt, as names of fields and prompts, is counted too, so that a file has
hardly more tokens to learn than this says."""

Basis = Literal["given", "report", "estimate"]


@dataclass(frozen=True, slots=True)
class Data:
    """The rows to be learnt from."""

    rows: int | None = None
    tokens: int | None = None
    """That are learnt in one pass."""
    longest_row: int | None = None
    rows_are: Rows | None = None
    basis: Basis = "given"
    """Where `tokens` is from: the caller, a report on the file for this base, or the file's size."""


def of_file(session: Session, project: Project, file_id: str, model: Known) -> Data:
    """What is known of an uploaded file. Raises `FileNotUsable`."""
    file = files.require_trainable(session, project, file_id, param="training_file")
    look = _look(file)
    if model.tokenizer_sha256 is not None:
        report = reports.newest(session, file.sha256, tokenizer_sha256=model.tokenizer_sha256)
        if report is not None and report.training.lengths is not None:
            return Data(file.rows, report.training.trained_tokens, report.training.lengths.max, look.rows_are, "report")
    return Data(file.rows, file.bytes // BYTES_A_TOKEN if look.is_plain else None, None, look.rows_are, "estimate")


class _Look(NamedTuple):
    """What a file's first row tells."""

    rows_are: Rows | None
    is_plain: bool
    """Whether its bytes are those of its text."""


def _look(file: File) -> _Look:
    try:
        with get_storage().open(file.sha256) as content:
            reading = formats.read(content)
            first = next(iter(reading), None)
    except Damaged:
        return _Look(None, is_plain=False)
    is_plain = reading.compression is None and reading.container is not Container.PARQUET
    row = first[1] if isinstance(first, tuple) else None
    is_prompt = isinstance(row, ChatRow) and not any(message.role == "assistant" for message in row.messages)
    return _Look("prompts" if is_prompt else _rows_are(reading.shape), is_plain)


def _rows_are(shape: Shape | None) -> Rows | None:
    match shape:
        case Shape.TEXT:
            return "text"
        case Shape.PROMPT_ONLY:
            return "prompts"
        case _ if shape in CHATS:
            return "answers"
        case _ if shape in PAIRS:
            return "preferences"
        case _ if shape in TAKES["kto"]:
            return "judged"
        case _:
            return None
