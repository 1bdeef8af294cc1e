"""The same rows from whatever they are packed in, known by content, each with its place, in little memory."""

import codecs
import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.files import formats
from app.files.containers import MAX_ROW_BYTES, Container, Contents
from app.files.findings import Code, Finding, Place
from app.files.rows import ChatRow, PromptRow, Row

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Colour {n}, “please”?"},
            {"role": "assistant", "content": "Blau,\nja; é"},
        ]
    }
    for n in range(3)
]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell, indent=1) for cell in row.values()])
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target, **options)
    return target.getvalue()


PACKED: dict[Container, list[Callable[[list[Any]], bytes]]] = {
    Container.JSONL: [lines, lambda rows: lines(rows).replace(b"\n", b"\r\n"), lambda rows: lines(rows).rstrip()],
    Container.JSON: [
        lambda rows: json.dumps(rows).encode(),
        lambda rows: json.dumps(rows, indent=4).encode(),
        lambda rows: b"\n\n " + json.dumps(rows).replace("},", "}\r\n,").encode() + b"\n\n",
    ],
    Container.CSV: [table, lambda rows: table(rows, ";"), lambda rows: table(rows, "\t")],
    Container.PARQUET: [parquet, lambda rows: parquet(rows, compression="zstd", row_group_size=2)],
}


@pytest.mark.parametrize("container", Container)
@pytest.mark.parametrize("compressed", [False, True])
def test_the_same_rows_come_from_every_container_plain_or_gzip(container: Container, compressed: bool) -> None:
    for pack in PACKED[container]:
        for mark in (b"",) if container is Container.PARQUET else (b"", codecs.BOM_UTF8):
            content = mark + pack(CHATS)
            reading = formats.read(io.BytesIO(gzip.compress(content) if compressed else content))
            found = list(reading)
            rows = [item for item in found if not isinstance(item, Finding)]
            assert rows == found
            assert [row.messages[0].text for _, row in rows if isinstance(row, ChatRow)] == [
                row["messages"][0]["content"] for row in CHATS
            ]
            assert [place.row for place, _ in rows] == [1, 2, 3]
            assert (reading.container, reading.compression) == (container, "gzip" if compressed else None)
            assert reading.complete


def places(content: bytes) -> list[Place]:
    return [item[0] for item in formats.read(io.BytesIO(content)) if not isinstance(item, Finding)]


def test_a_row_is_where_it_begins() -> None:
    row = lines(CHATS[:1])
    assert places(b"\n" + row + b" \r\n" + row) == [(1, 2), (2, 4)]
    assert places(json.dumps(CHATS).encode()) == [(1, 1), (2, 1), (3, 1)]
    long = len(json.dumps(CHATS[0], indent=1).splitlines())
    assert places(json.dumps(CHATS, indent=1).encode()) == [(n + 1, 2 + n * long) for n in range(3)]
    assert places(b'prompt,completion\n"a\n\nb",c\n\nd,e\n') == [(1, 2), (2, 6)]
    assert [str(place) for place in (Place(2, 4), Place(2, 1), Place(2, None))] == ["line 4", "row 2 (line 1)", "row 2"]
    assert places(parquet(CHATS)) == [(1, None), (2, None), (3, None)]


def test_an_archive_of_several_members_is_read_to_its_end() -> None:
    first, second = gzip.compress(lines(CHATS[:2])), gzip.compress(lines(CHATS[2:]))
    assert len(places(first + second)) == 3
    assert len(places(first + second + b"\0" * 512)) == 3  # tape blocks are filled up with zeros


def test_fields_that_a_table_fills_with_nulls_are_not_there() -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [CALL]}],
            "tools": [{"a": 1}],
        },
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "tools": [{"b": None}]},
    ]
    reading = formats.read(io.BytesIO(parquet(rows)))
    made = [item[1] for item in reading if not isinstance(item, Finding)]
    assert isinstance(made[0], ChatRow)
    assert isinstance(made[1], ChatRow)
    assert (made[0].messages[1].tool_calls, made[0].tools) == ([CALL], [{"a": 1}])
    assert (made[1].messages[1].tool_calls, made[1].tools) == (None, [{}])
    assert reading.ignored_fields == {}


def test_a_table_is_known_by_one_column_of_a_known_name() -> None:
    ((_, row),) = formats.read_rows(io.BytesIO(b"text\nThe sky is blue.\n"))
    assert row.__class__.__name__ == "TextRow"


def one(content: bytes) -> Row:
    ((_, row),) = formats.read_rows(io.BytesIO(content))
    return row


def test_numbers_of_any_size_and_brackets_in_texts_do_not_end_an_element() -> None:
    row: dict[str, Any] = {"prompt": '}],"{[\\', "completion": "x" * 200_000}
    assert one(json.dumps([row]).encode()) == PromptRow(**row)
    assert one(b'[{"prompt": "a", "completion": "b", "n": ' + b"9" * 1_000 + b"}]") == PromptRow("a", "b")


@pytest.mark.parametrize("mark", [1, 7, 64 * 1024 - 3, 64 * 1024 - 1, 64 * 1024])
def test_a_letter_of_several_bytes_may_lie_across_two_reads(mark: int) -> None:
    row: dict[str, Any] = {"prompt": "x" * mark + "é€😀" * 30, "completion": "b"}
    for content in (lines([row]), b"[" + lines([row]) + b"]", table([row]), gzip.compress(b"[" + lines([row]) + b"]")):
        assert one(content) == PromptRow(**row)


class Source(io.RawIOBase):
    """A long file that is nowhere; it remembers how much of it was read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self._begin: bytes | None = b""
        self.given = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """To its beginning, of which what was read so far is kept."""
        assert (offset, whence) == (0, 0)
        assert self._begin is not None
        self._held, self._begin, self.given = self._begin + self._held, None, 0
        return 0

    def readinto(self, buffer: Any) -> int:
        while not self._held and (piece := next(self._pieces, None)):
            self._held = piece
        data = self._held[: len(buffer)]
        self._held = self._held[len(data) :]
        buffer[: len(data)] = data
        self.given += len(data)
        if self._begin is not None:
            self._begin += data
        return len(data)


ROW = lines([{"prompt": "x" * 2_000, "completion": "b"}])
SOURCES = {
    "lines": lambda: (ROW for _ in range(3_000)),
    "array": lambda: (b"[" + ROW if n == 0 else b"," + ROW if n < 3_000 else b"]" for n in range(3_001)),
    "table": lambda: (b"prompt,completion\n" if n == 0 else b'"x\n%s",b\n' % (b"x" * 2_000) for n in range(3_001)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_long_file_is_read_in_little_memory(kind: str) -> None:
    file = io.BufferedReader(Source(SOURCES[kind]()))
    tracemalloc.start()
    try:
        report = formats.check(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.rows, report.findings) == (3_000, [])
    assert peak < 1_500_000


@pytest.mark.parametrize("start", [b'{"messages": "', b'[{"messages": "', b'prompt,completion\n"'])
def test_a_row_without_end_is_not_read_to_its_end(start: bytes) -> None:
    source = Source(start if n == 0 else b"x" * 65_536 for n in range(1_000))
    report = formats.check(io.BufferedReader(source))
    assert report.counts == {Code.TOO_LARGE: 1}
    assert source.given < 2.5 * MAX_ROW_BYTES


def test_a_bomb_is_unpacked_no_further_than_is_allowed() -> None:
    bomb = gzip.compress(ROW * 3_000)
    items = list(Contents(io.BytesIO(bomb), max_unpacked_bytes=1_000 * len(ROW)))
    assert isinstance(items[-1], Finding)
    assert items[-1].code is Code.TOO_LARGE
    assert 0 < len(items) - 1 <= 1_000
    assert len(list(Contents(io.BytesIO(bomb), max_unpacked_bytes=3_000 * len(ROW)))) == 3_000
