"""What can be found of a file: each finding names its row, says what is wrong, and what to do."""

from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

Severity = Literal["error", "warning"]
"""An error refuses the file; a warning is said, and refuses where the operator's settings say so."""


class Place(NamedTuple):
    """Where a row is in its file."""

    row: int
    """The how-manieth row, from 1; rows that cannot be read count too."""
    line: int | None
    """The line that it begins on, from 1; None in Parquet, which has no lines."""

    def __str__(self) -> str:
        if self.line is None:
            return f"row {self.row}"
        # Only in an array can rows share a line, which then does not say which is meant.
        return f"line {self.line}" if self.line >= self.row else f"row {self.row} (line {self.line})"


class Code(StrEnum):
    """The kinds of findings."""

    NOT_TEXT = "not_text"
    """Bytes that are no UTF-8 text: another encoding, NUL bytes, a damaged archive."""
    NOT_JSON = "not_json"
    """A row, or the file, that does not parse in its container's language."""
    TOO_LARGE = "too_large"
    """A row, or what a compressed file unpacks to, beyond what may be held."""
    NO_ROWS = "no_rows"
    """A file without a row."""
    WRONG_SHAPE = "wrong_shape"
    """A row that is not of the shape that the file's first row has, or of none that is known."""
    WRONG_METHOD = "wrong_method"
    """A file whose shape the method does not take."""
    NO_ANSWER = "no_answer"
    """Nothing in the row to learn: no assistant message, an empty one, a preference between two equal answers."""
    NO_ITEM = "no_item"
    """A prompt whose row lacks what the grader reads of it."""
    ANSWER_LEFT_OUT = "answer_left_out"
    """A prompt that the file has an answer to, which reinforcement does not train on."""
    BAD_ORDER = "bad_order"
    """Roles in an order that no conversation has: two of a kind, a late system message, a stray tool result."""
    EMPTY_CONTENT = "empty_content"
    """A message or a text without a word."""
    IGNORED_FIELDS = "ignored_fields"
    """Fields of a row that no shape knows, and that nothing reads."""
    ODD_CHARACTERS = "odd_characters"
    """NUL and other control characters, U+FFFD, and text that was decoded in the wrong encoding (`Ã©` for `é`)."""
    SECRET = "secret"  # noqa: S105  the kind, not one
    """What looks like a key or a password."""
    PERSONAL_DATA = "personal_data"
    """What looks like an e-mail address, a telephone number or the number of a card."""
    DUPLICATE = "duplicate"
    """The same row again."""
    TEMPLATE = "template"
    """The base's chat template refuses the row, leaves some of it out, or does not show where an answer ends."""
    OVER_LONG = "over_long"
    """Longer than `max_length`, where rows are not to be cut."""
    TRUNCATED = "truncated"
    """Cut to `max_length`."""
    NOTHING_TRAINED = "nothing_trained"
    """No token of the row is trained."""
    VALIDATION_OVERLAP = "validation_overlap"
    """A training row that is, or nearly is, a row of the validation file."""
    BENCHMARK_OVERLAP = "benchmark_overlap"
    """A training row that has, or nearly has, a question of a benchmark."""


SEVERITY: dict[Code, Severity] = {
    code: "warning"
    if code
    in {
        Code.ANSWER_LEFT_OUT,
        Code.BAD_ORDER,
        Code.EMPTY_CONTENT,
        Code.IGNORED_FIELDS,
        Code.ODD_CHARACTERS,
        Code.SECRET,
        Code.PERSONAL_DATA,
        Code.DUPLICATE,
        Code.TRUNCATED,
        Code.VALIDATION_OVERLAP,
        Code.BENCHMARK_OVERLAP,
    }
    else "error"
    for code in Code
}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing about one row, or about the file as a whole; a line of the report's JSONL."""

    code: Code
    message: str
    """A sentence or two: what is wrong, then what to do."""
    row: int | None = None
    line: int | None = None
    field: str | None = None
    """Where in the row, such as `messages[2].content`."""
    other: int | None = None
    """Of a duplicate or an overlap, the row that it repeats."""

    @property
    def severity(self) -> Severity:
        """Whether it refuses the file by itself."""
        return SEVERITY[self.code]

    def __str__(self) -> str:
        where = "" if self.row is None else f"{Place(self.row, self.line)}: "
        return where + self.message


def at(place: Place, code: Code, message: str, *, field: str | None = None, other: int | None = None) -> Finding:
    """A finding about a row."""
    said = _printable(message)
    return Finding(code, said, row=place.row, line=place.line, field=field and _printable(field), other=other)


def _printable(text: str) -> str:
    """What is quoted of a row goes into a database, which takes no NUL, and before somebody's eyes."""
    return "".join(char if char.isprintable() else " " for char in text)
