"""What is counted of training rows that stand in the validation rows or in a benchmark."""

import json
import random
from pathlib import Path

import pytest

from app.files.findings import Code, Finding, Place
from app.files.report import Overlap
from app.files.rows import PromptRow, Row
from worker.training.comparison import Comparison, benchmarks_sha256


def words(seed: int) -> str:
    draw = random.Random(seed)  # noqa: S311  no key
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(40))


def placed(*rows: Row) -> list[tuple[Place, Row]]:
    return [(Place(number, 2 * number), row) for number, row in enumerate(rows, 1)]


ROWS = [PromptRow(words(seed), words(100 + seed)) for seed in range(5)]
NEARLY = PromptRow(ROWS[1].prompt, f"{ROWS[1].completion} indeed")


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    for name, row in (("arc", ROWS[0]), ("bread", ROWS[1])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": row.prompt, "answer": "no matter"}))
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    return tmp_path


def all_findings(comparison: Comparison, *rows: Row) -> list[Finding]:
    return [finding for place, row in placed(*rows) for finding in comparison.findings(place, row)]


@pytest.mark.parametrize(
    ("name", "exact", "near"),
    [
        (
            "validation_file",
            "the same row as line 4 of the validation file.",
            "nearly line 4 of the validation file (0.",
        ),
        ("holdout", "the same row as line 4, which is held out.", "nearly line 4, which is held out (0."),
    ],
)
def test_rows_of_validation_are_counted_and_said_by_where_they_are(name: str, exact: str, near: str) -> None:
    comparison = Comparison(characters=1000, benchmarks=None)
    comparison.take(name, placed(ROWS[0], ROWS[1]))
    same, nearly = all_findings(comparison, ROWS[1], NEARLY, ROWS[2])
    assert same.message.startswith(exact)
    assert nearly.message.startswith(near)
    assert comparison.summed() == [Overlap(name=name, exact=1, near=1)]
    assert comparison.limits() == []


def test_each_benchmark_is_counted_by_itself_and_those_met_nowhere_too(benchmarks: Path) -> None:
    comparison = Comparison(characters=1000, benchmarks=benchmarks)
    comparison.take("holdout", placed(ROWS[0]))
    findings = all_findings(comparison, NEARLY, ROWS[2])
    assert [(one.code, one.row, one.other) for one in findings] == [(Code.BENCHMARK_OVERLAP, 1, 1)]
    assert "the benchmark bread" in findings[0].message
    assert comparison.summed() == [
        Overlap(name="holdout", exact=0, near=0),
        Overlap(name="arc", exact=0, near=0),
        Overlap(name="bread", exact=1, near=0),
    ]


def test_a_row_that_is_in_both_has_a_finding_of_each(benchmarks: Path) -> None:
    comparison = Comparison(characters=1000, benchmarks=benchmarks)
    comparison.take("validation_file", placed(ROWS[0]))
    codes = [finding.code for finding in all_findings(comparison, ROWS[0])]
    assert codes == [Code.VALIDATION_OVERLAP, Code.BENCHMARK_OVERLAP]


def test_a_benchmark_that_cannot_be_read_is_a_note_and_the_others_count(benchmarks: Path) -> None:
    (benchmarks / "broken.jsonl").write_text("hello")
    comparison = Comparison(characters=1000, benchmarks=benchmarks)
    assert len(all_findings(comparison, ROWS[0])) == 1
    (note,) = comparison.limits()
    assert note.startswith("The benchmark broken is not compared with: line 1:")


def test_of_a_large_file_it_is_said_how_many_rows_were_looked_at_for_near_matches() -> None:
    comparison = Comparison(characters=10**9, benchmarks=None)
    comparison.take("validation_file", placed(ROWS[0]))
    (sentence,) = comparison.limits()
    assert sentence.startswith("Near matches were looked for in 8% of the training rows")


@pytest.mark.parametrize("folder", [None, Path("not-there")])
def test_with_nothing_to_compare_with_nothing_is_found(folder: Path | None) -> None:
    comparison = Comparison(characters=1000, benchmarks=folder)
    assert all_findings(comparison, *ROWS) == []
    assert (comparison.summed(), comparison.limits()) == ([], [])


def test_the_benchmarks_digest_follows_their_names_and_contents(benchmarks: Path) -> None:
    seen = [benchmarks_sha256(benchmarks), benchmarks_sha256(None)]
    (benchmarks / ".DS_Store").write_bytes(b"\1")
    assert benchmarks_sha256(benchmarks) == seen[0]
    (benchmarks / "arc.jsonl").rename(benchmarks / "arc2.jsonl")
    seen.append(benchmarks_sha256(benchmarks))
    (benchmarks / "bread.jsonl").write_text("{}")
    seen.append(benchmarks_sha256(benchmarks))
    assert len(set(seen)) == 4
