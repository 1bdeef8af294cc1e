"""What rows are packed in: JSON lines, a JSON array, CSV or Parquet, each plain or gzip; from bytes to raw rows.

Known by content, never by name. Read from front to end with one row, or one batch of a table, in memory; what cannot be
read becomes a finding, and never an exception.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Generator, Iterator
from enum import StrEnum
from typing import Any, BinaryIO, Literal

from app.files.findings import Code, Finding, Place, at

MAX_ROW_BYTES = 10 * 1024 * 1024
"""Bounds what one row may take of memory; at some 4 bytes a token it is beyond any model's context."""
MAX_UNPACKED_BYTES = 4 * 1024**3
"""What a gzip archive or a Parquet file may unpack to: twice the largest file that is taken plain."""
HEAD_BYTES = 64 * 1024
"""By so much of its beginning a container is known."""
CHUNK_BYTES = 64 * 1024
BATCH_ROWS = 256
"""Of a Parquet file, decoded at a time."""

csv.field_size_limit(MAX_ROW_BYTES)  # the module's own is 131,072 characters, and one for the whole process

Raw = bytes | dict[str, Any]
"""A row as it lies in the file: the bytes of a JSON value, or a table's cells by their column; in CSV all are text."""
Rows = Generator[tuple[Place, Raw] | Finding, None, bool]
"""Returns whether the file was read to its end."""


class Container(StrEnum):
    """How rows are packed."""

    JSONL = "jsonl"
    """A JSON object a line."""
    JSON = "json"
    """One array of objects, on any number of lines."""
    CSV = "csv"
    """A table with a header; cells apart by comma, semicolon or tab."""
    PARQUET = "parquet"


FOREIGN = {
    b"PK\x03\x04": "a ZIP archive, as .xlsx and .docx are too. Unpack it, or save the sheet as CSV",
    b"%PDF": 'a PDF. Send its text as JSON lines: {"text": "..."}',
    b"\x1f\x8b": "packed with gzip twice. Unpack it once",
    b"BZh": "compressed with bzip2. Send it plain or as gzip",
    b"\xfd7zXZ": "compressed with xz. Send it plain or as gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Send it plain or as gzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive. Unpack it, and send the file in it",
    b"ARROW1": "an Arrow file. Save it as Parquet or JSON lines",
    b"\xd0\xcf\x11\xe0": "an old Office file, as .xls and .doc are. Save the sheet as CSV",
    b"SQLite format 3": "a database. Export the table as CSV",
    b"\x89PNG": "a picture. Only text can be trained on",
    b"\xff\xd8\xff": "a picture. Only text can be trained on",
    b"\x80\x04\x95": "a Python pickle, which is not opened here. Write its rows as JSON lines",
}
"""Files that are sent by mistake, by what they begin with."""
ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
COLUMNS = frozenset(
    {
        "messages",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "conversations",
        "instruction",
        "text",
        "question",
        "answer",
    }
)
"""Names that make a first line a table's header, even where the next line does not look like it."""


class Contents:
    """The raw rows of a file, to be read once; what it is packed in is known before the first of them."""

    def __init__(self, file: BinaryIO, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> None:
        """`file` can seek, and is read from its first byte."""
        self._limit = max_unpacked_bytes
        self._archive: _Gunzip | None = None
        self._source: BinaryIO | io.BufferedReader = file
        head = _head(file)
        self.compression: Literal["gzip"] | None = None
        if head.startswith(b"\x1f\x8b"):
            self.compression = "gzip"
            head = _head(_Gunzip(file, self._limit).buffered(), then=file)
            self._archive = _Gunzip(file, self._limit)
            self._source = self._archive.buffered()
        known = _known(head)
        self.container: Container | None = known if isinstance(known, Container) else None
        self._refusal = known if isinstance(known, Finding) else None
        self._delimiter = _delimiter(head) or ","
        self.complete = True
        """Whether all rows were seen: False once what follows a finding could not be told apart, or was not read."""

    def __iter__(self) -> Iterator[tuple[Place, Raw] | Finding]:
        if self._refusal:
            yield self._refusal
            self.complete = False
            return
        read = {
            Container.JSONL: self._lines,
            Container.JSON: self._elements,
            Container.CSV: self._records,
            Container.PARQUET: self._batches,
        }[self.container or Container.JSONL]
        self.complete = yield from read()
        if self.complete and self._archive and self._archive.problem:
            yield Finding(*self._archive.problem)
            self.complete = not self._archive.cut

    def _lines(self) -> Rows:
        number = row = 0
        while line := self._source.readline(MAX_ROW_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > MAX_ROW_BYTES:
                yield at(Place(row + 1, number), Code.TOO_LARGE, f"{_too_long('the line')} {UNREAD}")
                return False
            if line.isspace() or not line:
                continue
            row += 1
            place = Place(row, number)
            if line[-1] != NEWLINE and self._is_cut:
                return (yield from self._ends_early(place))
            yield at(place, Code.NOT_TEXT, NUL) if b"\0" in line else (place, line)
        return (yield from self._ends_early(Place(row + 1, number + 1))) if self._is_cut else True

    def _elements(self) -> Rows:
        """Finds where each element ends with the standard `json` module; what is in it is for others to judge."""
        window, row = _Window(self._source), 0
        window.step()  # over the bracket by which it was known
        character = window.next_character()
        while character != "]":
            place = Place(row + 1, window.line)
            element = self._element(window, place)
            if element is None:
                return (yield from self._ends_early(place))
            if isinstance(element, Finding):
                yield element
                return False
            row += 1
            yield at(place, Code.NOT_TEXT, NUL) if b"\0" in element else (place, element)
            character = window.next_character()
            if character == ",":
                window.step()
                character = window.next_character()
                wrong = "the array has a comma after its last row. Remove it." if character == "]" else None
            else:
                wrong = (
                    f"there is no comma before this row. Write one. {UNREAD}" if character not in ("]", "") else None
                )
            if wrong:
                yield at(Place(row + 1, window.line), Code.NOT_JSON, wrong)
                return False
        window.step()
        if window.next_character():
            place = Place(row + 1, window.line)
            yield at(place, Code.NOT_JSON, f"there is more after the array's end. Write all rows in one. {UNREAD}")
            return False
        return True

    def _element(self, window: "_Window", place: Place) -> bytes | Finding | None:
        """The next one's bytes; a finding that ends the reading; None where the archive broke off within it."""
        try:
            end = window.value_end()
        except _TooLong:
            return at(place, Code.TOO_LARGE, f"{_too_long('the row')} {UNREAD}")
        except (ValueError, RecursionError) as error:
            if window.ended and self._is_cut:
                return None
            if window.at == len(window.text):
                return at(place, Code.NOT_JSON, "the array does not end: it is not JSON without a ']'. Send it whole.")
            rest = window.text[window.at : window.at + HEAD_BYTES].encode(errors="surrogateescape")
            return at(place, Code.NOT_JSON, f"{not_json(getattr(error, 'msg', str(error)), rest, UNCLOSED)} {UNREAD}")
        element = window.text[window.at : end].encode(errors="surrogateescape")
        window.move(end)
        return element

    def _records(self) -> Rows:
        lines = _Lines(self._source)
        records = csv.reader(lines, delimiter=self._delimiter, strict=True)
        row = 0
        header: list[str] | None = None
        while True:
            place = Place(row + 1, lines.begin())
            try:
                cells = next(records)
            except StopIteration:
                break
            except _TooLong:
                yield at(place, Code.TOO_LARGE, f"{_too_long('the row, or a quoted cell that does not end,')} {UNREAD}")
                return False
            except csv.Error as error:
                if self._is_cut and (lines.ended or lines.last[-1] != NEWLINE):
                    return (yield from self._ends_early(place))
                yield at(place, Code.NOT_JSON, _not_csv(error, place, lines.number))
                if header is None or lines.ended:
                    return False  # how many rows an open quote took in, nobody can say
                row += 1
                continue
            if not cells or cells == [""] or (len(cells) == 1 and cells[0].isspace()):
                continue
            if lines.last[-1] != NEWLINE and self._is_cut:
                return (yield from self._ends_early(place))
            if header is None:
                header = [name.strip() for name in cells]
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    yield at(
                        place, Code.NOT_JSON, f"the header names '{twice[0][:50]}' twice. Give each column a name."
                    )
                    return False
                continue
            row += 1
            yield _record(place, header, cells)
        return (yield from self._ends_early(place)) if self._is_cut else True

    def _batches(self) -> Rows:
        import pyarrow as pa  # with NumPy it is an eighth of a process's start, and few files need it
        import pyarrow.parquet as pq

        row = 0
        with contextlib.ExitStack() as stack:
            source: Any = self._source
            if self._archive:  # Parquet is read from its end
                source = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(self._source, source)
                if self._archive.cut:
                    yield Finding(*self._archive.problem or (Code.NOT_TEXT, ""))
                    return False
            try:
                table = pq.ParquetFile(source, buffer_size=CHUNK_BYTES, pre_buffer=False)
                groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
                if sum(group.total_byte_size for group in groups) > self._limit:
                    yield Finding(Code.TOO_LARGE, f"the file unpacks to {_more_than(self._limit)}. Split it.")
                    return False
                unpacked = 0
                for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                    unpacked += batch.nbytes
                    if unpacked > self._limit:  # a dictionary's long text counts each time that a row names it
                        message = f"the file unpacks to {_more_than(self._limit)}. Split it."
                        yield at(Place(row + 1, None), Code.TOO_LARGE, message)
                        return False
                    for cells in _by_rows(batch):
                        row += 1
                        yield _cells(Place(row, None), cells)
            except (pa.ArrowException, OSError, ValueError, TypeError) as error:
                said = " ".join(str(error).split())[:200]
                message = f"the Parquet file is damaged from here on ({said}). Write it again."
                yield at(Place(row + 1, None), Code.NOT_TEXT, message)
                return False
        return True

    @property
    def _is_cut(self) -> bool:
        """Whether the archive broke off; a last line without an end is then not all of it."""
        return self._archive is not None and self._archive.cut

    def _ends_early(self, place: Place) -> Rows:
        code, message = (self._archive.problem if self._archive else None) or (Code.NOT_TEXT, "")
        yield at(place, code, f"{message} {UNREAD}")
        return False


NEWLINE = ord("\n")
NUL = "there is a NUL byte in it. Save the file as UTF-8 text."
UNREAD = "What follows was not read."
UNCLOSED = "Close what it opens, and look whether the file was sent whole."


def not_json(said: str, row: bytes, otherwise: str = "Write one JSON object a line.") -> str:
    """What a JSON parser said of a row, and the remedy for the mistake that it most looks like."""
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, row)), otherwise)
    return f"it is not JSON ({said}). {remedy}"


REMEDIES = {
    rb"^\s*\{\s*'": "It has single quotes, as Python prints a dict: write it with json.dumps.",
    rb"[:,\[]\s*-?(NaN|Infinity)\b": "NaN and Infinity are no JSON: write null, or a number.",
    rb"[:,\[]\s*(True|False|None)\b": "JSON writes true, false and null.",
    rb"^\s*[\[{][^\0]*[\]}]\s*,\s*$": "Remove the comma at its end: in JSON lines there is none between rows.",
    rb"\}\r\s*\{": "Its lines end with a carriage return alone: end them with a line feed.",
    rb"\}\s*\{": "There seem to be several objects in it. Write each on a line of its own.",
    rb"\\u[dD][89a-fA-F]": "It has half of a surrogate pair, written as \\ud8xx: write the whole character.",
}
"""For mistakes that look like JSON, by what shows them."""


def not_utf8(row: bytes) -> str:
    """What to say of bytes that are no UTF-8: which encoding they look like, and the remedy."""
    with contextlib.suppress(UnicodeDecodeError):
        if all(
            char.isalpha() or char in "‘’“”–—…€£§°©®«»¿¡ºª·´" for char in re.sub("[\0-\x7f]", "", row.decode("cp1252"))
        ):
            return "it is not valid UTF-8, but looks like Latin-1 (Windows-1252). Save the file as UTF-8 text."
    return "it is not valid UTF-8. Save the file as UTF-8 text."


class _TooLong(Exception):
    """A row is longer than any may be, so its end was not looked for."""


class _Gunzip(io.RawIOBase):
    """What a gzip archive unpacks to. What is wrong with it ends it early and is kept: the rows before it count."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__()
        self._unpacked = gzip.GzipFile(fileobj=file, mode="rb")
        self._left = limit
        self._limit = limit
        self.problem: tuple[Code, str] | None = None
        self.cut = False
        """Whether the problem took some of the rows."""

    def buffered(self) -> io.BufferedReader:
        """To be read by lines."""
        return io.BufferedReader(self, CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.problem:
            return 0
        try:
            data = self._unpacked.read1(len(buffer))  # one read at a time: what came before an error is not lost
        except EOFError:
            return self._end("the gzip archive ends early: it was not sent whole. Send it again.", cut=True)
        except gzip.BadGzipFile as error:
            if str(error).startswith("Not a gzipped file"):
                return self._end("there is something after the gzip archive's end. Pack the file again.", cut=False)
            return self._end(f"the gzip archive is damaged ({error}). Pack the file again.", cut=True)
        except (zlib.error, OSError) as error:
            return self._end(f"the gzip archive is damaged ({error}). Pack the file again.", cut=True)
        self._left -= len(data)
        if self._left < 0:
            said = f"the gzip archive unpacks to {_more_than(self._limit)}. Split it."
            return self._end(said, cut=True, code=Code.TOO_LARGE)
        buffer[: len(data)] = data
        return len(data)

    def _end(self, message: str, *, cut: bool, code: Code = Code.NOT_TEXT) -> int:
        self.problem, self.cut = (code, message), cut
        return 0


class _Window:
    """A piece of a long JSON text, moved along: the next character is `text[at]`, on line `line`."""

    _value = json.JSONDecoder(strict=False, parse_int=float)  # int() has a limit of its own, and the value is not used
    _space = re.compile(r"[ \t\r\n]*")

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at, self.line = "", 0, 1
        self.ended = False

    def move(self, to: int) -> None:
        """Go on to an index of the text."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def step(self) -> None:
        """Over the next character that is no white space."""
        self.next_character()
        self.move(self.at + 1)

    def next_character(self) -> str:
        """The first that is no white space, moved to; empty at the end."""
        while True:
            space = self._space.match(self.text, self.at)
            self.move(space.end() if space else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_on():
                return ""

    def value_end(self) -> int:
        """The index behind the value that begins here. Raises `ValueError`, `RecursionError` or `_TooLong`."""
        while True:
            try:
                _, end = self._value.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # It may only be cut off by the window's end, as a literal is up to there, and a string from anywhere.
                inside = error.pos + 16 < len(self.text) and not error.msg.startswith("Unterminated string")
                if inside or self.ended:
                    raise
            else:
                if end - self.at <= MAX_ROW_BYTES and (end < len(self.text) or self.ended):
                    return end
            if len(self.text) - self.at > MAX_ROW_BYTES:
                raise _TooLong
            self._read_on()

    def _read_on(self) -> bool:
        """At least as much again as is held, so that a long value is not looked through too often."""
        if self.ended:
            return False
        held = self.text[self.at :]
        data = self._source.read(max(CHUNK_BYTES, len(held)))
        self.ended = not data
        self.text, self.at = held + self._decoder.decode(data, final=self.ended), 0
        return True


class _Lines:
    """Lines of text for the csv module, counted. Raises `_TooLong` rather than feed a record without end."""

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        self._source = source
        self._taken = 0
        self.number = 0
        self.ended = False
        self.last = b"\n"

    def begin(self) -> int:
        """A record begins; the number of its first line."""
        self._taken = 0
        return self.number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._source.readline(MAX_ROW_BYTES + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self._taken += len(line)
        if self._taken > MAX_ROW_BYTES:
            raise _TooLong
        self.number += 1
        self.last = line
        return (line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line).decode(errors="surrogateescape")


def _head(source: BinaryIO | io.BufferedReader, then: BinaryIO | None = None) -> bytes:
    head = source.read(HEAD_BYTES)
    (then or source).seek(0)
    return head


def _known(head: bytes) -> Container | Finding:
    """What a file is, or why none of it can be read."""
    if head.startswith(b"PAR1"):
        return Container.PARQUET
    for start, what in FOREIGN.items():
        if head.startswith(start):
            return Finding(Code.NOT_TEXT, f"the file is {what}.")
    if encoding := _encoding(head):
        return Finding(Code.NOT_TEXT, f"the file is {encoding} text. Save it as UTF-8.")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return Container.JSON
    if text.startswith(b"<"):
        return Finding(Code.NOT_TEXT, "the file is HTML or XML, perhaps a page of an error. Send rows as JSON lines.")
    if text.startswith(b"{"):
        return _one_object(text) or Container.JSONL
    return Container.CSV if _delimiter(head) else Container.JSONL


def _encoding(head: bytes) -> str | None:
    for mark, name in ENCODINGS.items():
        if head.startswith(mark):
            return name
    nuls = head[:64].count(0) / max(len(head[:64]), 1)
    if nuls < 0.4:  # ASCII text has a NUL in every other byte in UTF-16, in three of four in UTF-32
        return None
    return "UTF-32" if nuls > 0.6 else "UTF-16"


def _one_object(text: bytes) -> Finding | None:
    """Of JSON that begins with an object which goes on over several lines: it is neither JSON lines nor an array."""
    first, *rest = [line for line in text.splitlines() if line.strip()][:2]
    goes_on = rest and (rest[0][:1].isspace() or rest[0][:1] in b'"}]') and not first.rstrip().endswith(b"}")
    if not goes_on:
        return None
    where = re.match(rb'\{\s*"(\w+)"\s*:\s*\[\s*\{', text)
    if where and where[1] not in (b"messages", b"conversations", b"prompt"):
        name = where[1].decode()
        remedy = f"The rows are in '{name}': send that array by itself"
    else:
        remedy = "Write each row on one line, or all rows as one array: [{...}, {...}]"
    return at(
        Place(1, 1),
        Code.NOT_JSON,
        f"it is not JSON by itself: an object goes on over several lines. {remedy}. {UNREAD}",
    )


def _delimiter(head: bytes) -> str | None:
    """What is between a header's cells; None where the file does not begin as a table does."""
    lines = head.removeprefix(codecs.BOM_UTF8).decode(errors="replace").splitlines(keepends=True)
    while lines and not lines[0].strip():
        del lines[0]
    if not lines or (len(lines) > 1 and lines[1].lstrip().startswith("{")):
        return None
    if lines[0].strip().strip('"').lower() in COLUMNS:
        return ","
    most, found = 1, None
    for delimiter in ",;\t":
        with contextlib.suppress(csv.Error, StopIteration):
            records = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(records)
            named = COLUMNS & {name.strip().lower() for name in header}
            if len(header) > most and (named or len(next(records)) == len(header)):
                most, found = len(header), delimiter
    return found


def _record(place: Place, header: list[str], cells: list[str]) -> tuple[Place, Raw] | Finding:
    text = "".join(cells)
    if "\0" in text:
        return at(place, Code.NOT_TEXT, NUL)
    try:
        text.encode()
    except UnicodeEncodeError:
        return at(place, Code.NOT_TEXT, not_utf8(text.encode(errors="surrogateescape")))
    if len(cells) != len(header):
        return at(
            place,
            Code.NOT_JSON,
            f"it has {len(cells)} cells, but the header names {len(header)} columns. Quote cells that have the"
            " delimiter or a line break in them.",
        )
    return place, dict(zip(header, cells, strict=True))


def _not_csv(error: csv.Error, place: Place, last: int) -> str:
    if "unexpected end of data" in str(error):
        return (
            f"a quoted cell begins in this row and does not end: all up to line {last} was read as part of it. Close"
            ' it with ", and write a " within it twice.'
        )
    through = f" of lines {place.line} to {last}" if last != place.line else ""
    return f'the row{through} is not CSV ({error}). Quote cells that have a " in them, and write it twice.'


def _by_rows(batch: Any) -> Iterator[Any]:
    """Its rows as dicts; as slices of one row where all at once could take too much, or cannot be had."""
    # Each of 256 rows may name the same text of a dictionary, which `nbytes` counts once: 64 MiB at the most.
    if batch.nbytes <= 256 * 1024:
        with contextlib.suppress(UnicodeDecodeError):
            yield from batch.to_pylist()
            return
    yield from (batch.slice(index, 1) for index in range(batch.num_rows))


def _cells(place: Place, row: Any) -> tuple[Place, Raw] | Finding:
    """A row's cells; nulls are what Parquet puts where a row or an object has no such field."""
    if not isinstance(row, dict):
        if row.nbytes > MAX_ROW_BYTES:
            return at(place, Code.TOO_LARGE, _too_long("the row"))
        try:
            (row,) = row.to_pylist()
        except UnicodeDecodeError:
            return at(place, Code.NOT_TEXT, "there is text in it that is not valid UTF-8. Write it again.")
    return place, {name: _without_nulls(cell) for name, cell in row.items() if cell is not None}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _too_long(what: str) -> str:
    return f"{what} is longer than {MAX_ROW_BYTES // 1024**2} MiB. Split the row, or check the line ends."


def _more_than(size: int) -> str:
    return f"more than {size} bytes"
