"""Training rows against what shall judge the model later, and how many of them were met there."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.files.digests import row_digest
from app.files.findings import Finding, Place
from app.files.report import Overlap
from app.files.rows import Row
from worker.training.overlap import BenchmarkOverlap, ValidationOverlap, near_share, questions_of

HOLDOUT = "holdout"


class Comparison:
    """With validation rows, or rows held out, and with the questions of benchmarks."""

    def __init__(self, *, characters: int, benchmarks: Path | None) -> None:
        """`characters` of the training file decide how many of its rows are looked at for near matches."""
        self._share = near_share(characters)
        self._validation: ValidationOverlap | None = None
        self._validation_name = ""
        questions, self.notes = questions_of(benchmark_files(benchmarks))
        self._benchmarks = BenchmarkOverlap(questions, share=self._share) if questions else None
        self._named = sorted({question.benchmark for question in questions})
        self._counts: Counter[tuple[str, bool]] = Counter()

    def take(self, name: str, rows: Iterable[tuple[Place, Row]]) -> None:
        """Rows of validation: `validation_file`, or `holdout`."""
        self._validation_name = name
        self._validation = ValidationOverlap(rows, share=self._share, held_out=name == HOLDOUT)

    def findings(self, place: Place, row: Row) -> Iterator[Finding]:
        """What a training row has in common with them."""
        if self._validation is None and self._benchmarks is None:
            return
        digest = row_digest(row)
        if self._validation is not None and (match := self._validation.find(place, row, digest)):
            self._counts[self._validation_name, match.exact] += 1
            yield match.finding
        if self._benchmarks is not None and (match := self._benchmarks.find(place, row, digest)):
            self._counts[match.other, match.exact] += 1
            yield match.finding

    def summed(self) -> list[Overlap]:
        """Of each that there is, how many training rows are in it too."""
        names = [self._validation_name] * bool(self._validation_name) + self._named
        return [Overlap(name=name, exact=self._counts[name, True], near=self._counts[name, False]) for name in names]

    def limits(self) -> list[str]:
        """What was not looked at, in sentences."""
        said = [one.limits() for one in (self._validation, self._benchmarks) if one is not None]
        return [*self.notes, *(sentence for sentence in said if sentence)]


def benchmark_files(folder: Path | None) -> list[Path]:
    """The files in the folder, each a benchmark; hidden ones are none."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def benchmarks_sha256(folder: Path | None) -> str:
    """Of their names and contents."""
    digest = hashlib.sha256()
    for path in benchmark_files(folder):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
