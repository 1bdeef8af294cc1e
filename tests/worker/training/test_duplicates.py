"""Rows that a file has more than once."""

import tracemalloc
from hashlib import blake2b

from app.files.digests import row_digest
from app.files.findings import Code, Finding, Place
from app.files.rows import TextRow
from worker.training.duplicates import Duplicates


def found(texts: list[str], *, lines: bool = True) -> list[Finding]:
    duplicates = Duplicates()
    for row, text in enumerate(texts, start=1):
        duplicates.add(Place(row, 2 * row if lines else None), row_digest(TextRow(text)))
    return list(duplicates.findings())


def test_each_later_row_names_the_first_that_is_the_same() -> None:
    findings = found(["a", "b", "a", "c", "b", "a"])
    assert [(one.code, one.row, one.line, one.other) for one in findings] == [
        (Code.DUPLICATE, 3, 6, 1),
        (Code.DUPLICATE, 5, 10, 2),
        (Code.DUPLICATE, 6, 12, 1),
    ]
    assert findings[0].message.startswith("the same row as line 2.")


def test_rows_without_lines_are_named_by_their_rows() -> None:
    (finding,) = found(["a", "a"], lines=False)
    assert (finding.row, finding.line, finding.other) == (2, None, 1)
    assert "row 1." in finding.message


def test_a_file_without_duplicates_or_rows_has_none() -> None:
    assert found([str(number) for number in range(1000)]) == []
    assert found([]) == []


def test_a_million_rows_take_less_than_50_mb() -> None:
    rows = 100_000  # a tenth of it, in a tenth of the time
    digests = [blake2b(str(number % (rows // 2)).encode(), digest_size=16).digest() for number in range(rows)]
    tracemalloc.start()
    try:
        duplicates = Duplicates()
        for row, digest in enumerate(digests, start=1):
            duplicates.add(Place(row, row), digest)
        first = next(duplicates.findings())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (first.row, first.other) == (rows // 2 + 1, 1)
    assert peak < 5_000_000
