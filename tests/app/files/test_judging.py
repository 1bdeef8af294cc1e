"""Files that are read while they arrive: the same judgement as of the whole, and nothing held for those given up."""

import csv
import gzip
import io
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.files import judging
from app.files.judging import Judgement, Judging, judge
from tests.running import wait_for

ROWS = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}." * (n % 7 + 1)} for n in range(3000)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def as_csv() -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, ROWS[0].keys())
    table.writeheader()
    table.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


FILES = {
    "jsonl": LINES,
    "json": json.dumps(ROWS).encode(),
    "csv": as_csv(),
    "parquet": as_parquet(),
    "jsonl.gz": gzip.compress(LINES),
    "parquet.gz": gzip.compress(as_parquet()),
    "one row": LINES[: LINES.index(b"\n")],
    "an error in the last row": LINES + b'{"prompt": 1}\n',
    "an archive that breaks off": gzip.compress(LINES)[:-9],
    "a table that breaks off": as_parquet()[:-9],
    "no rows": b"\n\n",
}


def pieces(content: bytes) -> Iterator[bytes]:
    """Of odd lengths, so that rows and tables arrive in halves."""
    rest, sizes = memoryview(content), random.Random(7)  # noqa: S311  no secret
    while rest:
        size = sizes.choice((1, 700, 9_000, 60_000))
        yield bytes(rest[:size])
        rest = rest[size:]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_judged_as_it_would_be_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file, Judging(path) as arriving:
        arriving.begin()
        for piece in pieces(FILES[name]):
            file.write(piece)
        judgement = arriving.end()
    assert judgement == judge(path)
    assert (judgement.rows is None) == (
        name not in {"jsonl", "json", "csv", "parquet", "jsonl.gz", "parquet.gz", "one row"}
    )


def test_rows_are_read_before_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file, Judging(path) as arriving:
        arriving.begin()
        file.write(LINES)
        growing = arriving._growing
        assert growing is not None
        wait_for(lambda: growing.tell() == len(LINES), 5)
        file.write(LINES)
        assert arriving.end() == Judgement(rows=2 * len(ROWS))


def test_an_error_at_the_beginning_does_not_end_the_reading_while_the_rest_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the answer before the file is whole, so there is time to find what else is wrong."""
    monkeypatch.setattr(judging, "PATIENCE", 0.0)
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file, Judging(path) as arriving:
        arriving.begin()
        file.write(b'{"prompt": "a", "completion": 1}\n' + LINES + b"[2]\n" + LINES[:100])
        growing = arriving._growing
        assert growing is not None
        wait_for(lambda: growing.tell() == file.tell(), 5)
        problem = str(arriving.end().problem)
    assert "line 1" in problem
    assert f"line {len(ROWS) + 2}" in problem


def test_more_than_are_read_at_once_are_judged_once_they_are_there_and_given_up_ones_make_room(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LINES[:100_000])
    with ExitStack() as stack:
        for _ in range(judging.READERS):
            stack.enter_context(Judging(path)).begin()
        with Judging(path) as late:
            late.begin()
            assert late._growing is None
            assert late.end() == judge(path)
    wait_for(lambda: judging._free._value == judging.READERS, 5)
    with Judging(path) as arriving:
        arriving.begin()
        assert arriving._growing is not None
        assert arriving.end() == judge(path)
