"""Reading a fine-tune file: row by row, typed, of one shape, never whole in memory.

The first row that can be read says which shape the file has, and each row must be of that shape. Rows come out in the
canonical forms of `rows`, whatever the file calls their fields. The service checks an upload with this code, and the
trainer reads it with the same.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import msgspec

from app.files import shapes
from app.files.containers import MAX_UNPACKED_BYTES, Container, Contents, Raw, not_json, not_utf8
from app.files.findings import SEVERITY, Code, Finding, Place, at
from app.files.rows import ChatRow, Row, graded
from app.files.shapes import FORMS, Shape, Source, Unusable

MAX_LISTED = 20
"""Findings that a report lists; a file with more is beyond listing."""
MAX_IGNORED = 50
"""Names of ignored fields that are counted apart."""
MAX_QUOTED = 500
"""Characters of an error that quotes a row, which can be as long as the row."""


CHATS = frozenset({Shape.MESSAGES, Shape.PROMPT_COMPLETION, Shape.ALPACA, Shape.SHAREGPT, Shape.QUESTION_ANSWER})
PAIRS = frozenset({Shape.PREFERENCE, Shape.OPENAI_PREFERENCE, Shape.SHAREGPT_PREFERENCE})

TAKES: dict[str, frozenset[Shape]] = {
    "supervised": CHATS,
    "continued_pretraining": frozenset({Shape.TEXT}),
    "dpo": PAIRS,
    "kto": frozenset({Shape.UNPAIRED, Shape.LABELLED}),
    "orpo": PAIRS,
    "simpo": PAIRS,
    "reward": PAIRS,
    "reinforcement": frozenset({Shape.PROMPT_ONLY, Shape.MESSAGES}),
}
"""Which shapes a method trains on."""
_EXAMPLES = {
    "supervised": Shape.MESSAGES,
    "continued_pretraining": Shape.TEXT,
    "kto": Shape.UNPAIRED,
    "reinforcement": Shape.PROMPT_ONLY,
}


class UnusableFile(ValueError):
    """A file that `check` would refuse; the message names the row."""


def mismatch(shape: Shape, method: str) -> str | None:
    """Why the method does not take a file of that shape, and which would; None where it does."""
    if shape in TAKES[method]:
        return None
    wanted = FORMS[_EXAMPLES.get(method, Shape.PREFERENCE)].example
    others = [other for other, taken in TAKES.items() if shape in taken]
    seen = FORMS[shape]
    return (
        f"the file has {seen.name}, such as {seen.example}, which method '{method}' does not train on. Send rows such"
        f" as {wanted}, or train this file as it is with method {_any_of(others)}."
    )


class Conversion(msgspec.Struct, frozen=True):
    """What rows were made of, shown by the first that was converted."""

    message: str
    before: Any
    """The row as it lies in the file."""
    after: Any


class Reading:
    """One pass over a file: its rows and findings in their order. What it is, it says while and after it is read."""

    def __init__(self, file: BinaryIO, method: str | None, max_unpacked_bytes: int) -> None:
        self._contents = Contents(file, max_unpacked_bytes)
        self._method = method
        self.shape: Shape | None = None
        self._source: type[Any] = Source
        """What rows are decoded into, once the shape is known."""
        self._decode: Callable[[Any], Any] | None = None
        """Straight from bytes, where rows are JSON."""
        self._answered = False
        """Whether a conversation before this one ends with an answer."""
        self.conversion: Conversion | None = None
        """None where the rows are canonical as they are."""
        self.ignored_fields: dict[str, int] = {}
        """Fields that nothing reads, as `source` or `messages[].refusal`, and in how many rows they have a value; of
        every row, not of a sample. From the 51st name on only those seen before are counted."""

    @property
    def container(self) -> Container | None:
        """None for a file that holds no rows."""
        return self._contents.container

    @property
    def compression(self) -> Literal["gzip"] | None:
        """What the container is packed in."""
        return self._contents.compression

    @property
    def complete(self) -> bool:
        """Whether all rows were seen, good or bad: False once what follows a finding was not read."""
        return self._contents.complete

    def __iter__(self) -> Iterator[tuple[Place, Row] | Finding]:
        seen = False
        for item in self._contents:
            seen = True
            if isinstance(item, Finding):
                yield item
                continue
            place, raw = item
            row = self._straight(raw)
            if row is not None:
                yield place, row
                continue
            known = self.shape
            made = self._made(place, raw)
            if self.shape is not known and (problem := self._mismatch()):
                yield Finding(Code.WRONG_METHOD, problem)
            yield made if isinstance(made, Finding) else (place, made)
        if not seen:
            yield at(Place(1, 1), Code.NO_ROWS, "the file has no rows. Write one JSON object a line.")

    def _mismatch(self) -> str | None:
        return mismatch(self.shape, self._method) if self.shape and self._method else None

    def _straight(self, raw: Raw) -> Row | None:
        """From the bytes into the canonical row, as fast as can be; None for a row that wants a closer look."""
        if self._decode is None:
            return None
        try:
            source = self._decode(raw)
            if isinstance(source, Source):
                if source.converted and self.conversion is None:
                    return None  # it shows how rows are converted
                source = source.row()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Unusable):
            return None
        row: Row = source
        return row if self._is_usable(row) else None

    def _made(self, place: Place, raw: Raw) -> Row | Finding:
        try:
            return self._examined(raw)
        except Unusable as error:
            code, message, field = error.problem
            return at(place, code, message, field=field)
        except msgspec.ValidationError as error:
            wanted = FORMS[self.shape or Shape.MESSAGES].example
            said = f"{str(error)[:MAX_QUOTED]}. Every row must look like {wanted}."
            return at(place, Code.WRONG_SHAPE, said, field=_field(error))
        except UnicodeDecodeError:
            return at(place, Code.NOT_TEXT, not_utf8(raw if isinstance(raw, bytes) else b""))
        except (msgspec.DecodeError, RecursionError) as error:
            return at(place, Code.NOT_JSON, not_json(str(error), raw if isinstance(raw, bytes) else b""))

    def _examined(self, raw: Raw) -> Row:
        """Decoded without types first, so that the row's shape shows, and the fields that nothing reads.

        Raises `Unusable`, and what msgspec raises.
        """
        value = msgspec.json.decode(raw) if isinstance(raw, bytes) else raw
        value = msgspec.convert(value, dict[str, Any])
        is_text = self.container is Container.CSV
        self._require_shape({name: shapes.value_of(cell) for name, cell in value.items()} if is_text else value)
        given = shapes.from_cells(value, self._source) if is_text else value
        modern = shapes.modern(given) if self.shape is Shape.MESSAGES else given
        known, ignored = shapes.known_part(modern, self._source)
        source = msgspec.convert(known, self._source)
        row: Row = source.row() if isinstance(source, Source) else source
        if modern is not given or (isinstance(source, Source) and source.converted):
            self._show_conversion(value, row)
        if self._method == "reinforcement" and isinstance(row, ChatRow):
            row = graded(row, value)
            self._decode = None  # all fields of a row are its grader's
            ignored = {name for name in ignored if "." in name}
        self._count(ignored)
        if not self._is_usable(row) and (problem := row.problem()):
            raise Unusable(*problem)
        return row

    def _count(self, ignored: set[str]) -> None:
        if ignored:
            self._decode = None  # the next rows have them too, most likely
        for name in sorted(ignored):
            if name in self.ignored_fields or len(self.ignored_fields) < MAX_IGNORED:
                self.ignored_fields[name] = self.ignored_fields.get(name, 0) + 1

    def _require_shape(self, row: dict[str, Any]) -> None:
        """The file's, which the first row settles. Raises `Unusable` for a row of another."""
        shape = shapes.prompt_of(row) if self._method == "reinforcement" else shapes.shape_of(row)
        if self.shape is None:
            if shape is None:
                raise Unusable(Code.WRONG_SHAPE, shapes.unknown(row), None)
            self.shape, self._source = shape, shapes.source_of(shape, row)
            if self.container in (Container.JSONL, Container.JSON):
                decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._source)
                self._decode = decoder.decode
        elif shape is not self.shape:
            raise Unusable(Code.WRONG_SHAPE, shapes.another(row, shape, self.shape, self._source), None)

    def _is_usable(self, row: Row) -> bool:
        """Whether something can be learnt from it, or, as far as is known, from grading answers to it.

        A conversation without an answer may be such a prompt in a file of its like, which no method has been named for.
        """
        if not isinstance(row, ChatRow):
            return row.problem() is None
        answered = bool(row.messages) and row.messages[-1].role == "assistant"
        self._answered = self._answered or answered
        if self.shape is Shape.PROMPT_ONLY:
            return True
        prompt = self._method is None and not self._answered and row.messages[-1:] != []
        return (prompt and row.messages[-1].role in ("user", "tool")) or row.problem() is None

    def _show_conversion(self, before: dict[str, Any], row: Row) -> None:
        if self.conversion is None and self.shape:
            said = FORMS[self.shape].conversion or ""
            self.conversion = Conversion(said, msgspec.to_builtins(before), msgspec.to_builtins(row))


def read(file: BinaryIO, method: str | None = None, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> Reading:
    """Begin to read a file that can seek. With a method, a file of a shape that it does not take has one finding more.

    Rows of `messages` without an answer are bad but for the method `reinforcement`, whose rows all come as prompts;
    and where no method is named, if no row before them ends with an answer.
    """
    return Reading(file, method, max_unpacked_bytes)


@dataclass(slots=True)
class FileReport:
    """What a file is, judged by its rows."""

    reading: Reading
    rows: int = 0
    """Good ones."""
    bad_rows: int = 0
    """With the good ones all rows of the file, where it is complete."""
    findings: list[Finding] = field(default_factory=list)
    """The first of them."""
    counts: Counter[Code] = field(default_factory=Counter)
    """All of them."""
    broken_off_after: int | None = None
    """The last row that was looked at, where there was no patience for more."""

    @property
    def errors(self) -> int:
        """How many findings refuse the file."""
        return sum(count for code, count in self.counts.items() if SEVERITY[code] == "error")

    def add(self, finding: Finding) -> None:
        """Count it, and list it while the list is short."""
        self.counts[finding.code] += 1
        if finding.row is not None and finding.code is not Code.NO_ROWS:
            self.bad_rows += 1
        if len(self.findings) < MAX_LISTED:
            self.findings.append(finding)


def check(
    file: BinaryIO,
    method: str | None = None,
    *,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    patience: float | None = None,
    somebody_waits: Callable[[], bool] = lambda: True,
) -> FileReport:
    """Read a file through. Never raises for what is in it.

    With `patience`, no more than so many seconds are looked on after an error, once `somebody_waits` to hear of it.
    """
    report = FileReport(read(file, method, max_unpacked_bytes=max_unpacked_bytes))
    wrong, until = False, math.inf
    for item in report.reading:
        if not isinstance(item, Finding):
            report.rows += 1
        else:
            report.add(item)
            wrong = wrong or item.severity == "error"
        if patience is None or not wrong:
            continue
        if until == math.inf and somebody_waits():
            until = time.monotonic() + patience
        if time.monotonic() > until:
            report.broken_off_after = report.rows + report.bad_rows
            return report
    return report


def read_rows(
    file: BinaryIO, method: str | None = None, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES
) -> Iterator[tuple[Place, Row]]:
    """The rows of a file that `check` found good. Raises `UnusableFile` at the first error."""
    for item in read(file, method, max_unpacked_bytes=max_unpacked_bytes):
        if not isinstance(item, Finding):
            yield item
        elif item.severity == "error":
            raise UnusableFile(str(item))


def summary(report: FileReport) -> str:
    """The first findings of a report in a sentence, and how many more there are."""
    listed = " ".join(str(finding) for finding in report.findings[:5])
    more = report.counts.total() - len(report.findings[:5])
    unread = f" Rows after the {report.broken_off_after}th were not looked at." if report.broken_off_after else ""
    return listed + (f" And {more} more." if more > 0 else "") + unread


def _field(error: msgspec.ValidationError) -> str | None:
    """Where msgspec says that it is: `... - at `$.messages[0].role``, or a field that is missing there."""
    where = re.search(r" - at `\$\.?(.*)`$", str(error))
    missing = re.match(r"Object missing required field `(.*?)`", str(error))
    path = [part[1][:100] for part in (where, missing) if part and part[1]]
    return ".".join(path) or None


def _any_of(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
