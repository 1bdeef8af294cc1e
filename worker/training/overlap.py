"""Training rows that are to judge the model later: in the validation file, or in a benchmark.

Of validation a row is compared whole, prompt and answer but without system messages: a question with another answer is
not the same row. Of a benchmark the question alone, for its answers are seldom written as training data has them.
"""

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from app.files import formats
from app.files.digests import row_digest
from app.files.findings import Code, Finding, Place, at
from app.files.rows import ChatMessage, Row
from app.files.texts import parts
from worker.training.near import NearIndex
from worker.training.passages import Passages
from worker.training.shingles import normalised

MAX_INDEXED = 20_000
"""Rows of validation, and questions, that near matches are looked for in; some 10 KB of memory each."""
NEAR_CHARACTERS = 80_000_000
"""Of training rows that are looked at for near matches, such as 200,000 of 400 characters; some 60 s."""


def near_share(characters: int) -> float:
    """The share of training rows to look at for near matches, of a file with so many characters in all."""
    return min(1.0, NEAR_CHARACTERS / max(1, characters))


class Match(NamedTuple):
    """A training row that is somewhere else too."""

    finding: Finding
    other: str
    """The benchmark; empty of validation."""
    exact: bool


class ValidationOverlap:
    """Rows that are validated with, to be met again in training rows: a file's, or those held out of the same."""

    def __init__(self, rows: Iterable[tuple[Place, Row]], *, share: float = 1.0, held_out: bool = False) -> None:
        """A row of training is looked at for near matches where it is of this share, by its digest."""
        self._share = share
        self._where = ", which is held out" if held_out else " of the validation file"
        self._exact: dict[bytes, Place] = {}
        sample = heapq.nsmallest(MAX_INDEXED, self._entries(rows))
        self._places = [place for _, place, _ in sample]
        self._near = NearIndex([text for _, _, text in sample])

    def find(self, place: Place, row: Row, digest: bytes) -> Match | None:
        """That a training row is, or nearly is, one of them."""
        if other := self._exact.get(digest):
            return self._match(place, other, f"the same row as {other}{self._where}.", exact=True)
        if _is_of(digest, self._share) and (nearest := self._near.nearest(_whole(row))):
            number, likeness = nearest
            other = self._places[number]
            return self._match(place, other, f"nearly {other}{self._where} ({likeness:.2f} alike).", exact=False)
        return None

    def limits(self) -> str | None:
        """What was not looked at, in a sentence; None where all was."""
        return _limits(self._share, "validation rows", len(self._places), len(self._exact))

    def _entries(self, rows: Iterable[tuple[Place, Row]]) -> Iterator[tuple[bytes, Place, str]]:
        for place, row in rows:
            digest = row_digest(row)
            if digest not in self._exact:
                self._exact[digest] = place
                yield digest, place, _whole(row)

    @staticmethod
    def _match(place: Place, other: Place, what: str, *, exact: bool) -> Match:
        message = f"{what} Drop one of the two: what was trained on cannot judge the model."
        return Match(at(place, Code.VALIDATION_OVERLAP, message, other=other.row), "", exact)


class Question(NamedTuple):
    """What a benchmark asks."""

    benchmark: str
    place: Place
    text: str

    def __str__(self) -> str:
        return f"the question of {self.place} of the benchmark {self.benchmark}"


def questions_of(paths: Iterable[Path]) -> tuple[list[Question], list[str]]:
    """What the benchmarks in these files ask, and a sentence for each file that cannot be read."""
    questions: list[Question] = []
    warnings: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                questions += [Question(path.stem, place, question_of(row)) for place, row in formats.read_rows(file)]
        except (formats.UnusableFile, OSError) as error:
            warnings.append(f"The benchmark {path.stem} is not compared with: {error}")
    return questions, warnings


def question_of(row: Row) -> str:
    """The first thing that a user says, or the prompt, or the text."""
    (_, part), *_ = parts(row)
    if isinstance(part, str):
        return part
    return next((message.text for message in part if message.role == "user"), "")


class BenchmarkOverlap:
    """The questions of benchmarks, to be met again in training rows."""

    def __init__(self, questions: Iterable[Question], *, share: float = 1.0) -> None:
        """A row of training is looked at for near matches where it is of this share, by its digest."""
        self._share = share
        self._exact: dict[str, Question] = {}
        for question in questions:
            if text := normalised(question.text):
                self._exact.setdefault(text, question)
        self._texts = list(self._exact)
        self._passages = Passages(self._texts)
        self._sample = heapq.nsmallest(MAX_INDEXED, self._texts, key=_order_of)
        self._near = NearIndex(self._sample)

    def find(self, place: Place, row: Row, digest: bytes) -> Match | None:
        """That a training row asks one of them or has it in it, or nearly asks one."""
        asked = normalised(question_of(row))
        if question := self._exact.get(asked):
            return self._match(place, question, f"asks {question}.", exact=True)
        if (within := self._passages.within(_whole(row))) is not None:
            question = self._exact[self._texts[within]]
            return self._match(place, question, f"has {question} in it.", exact=True)
        if _is_of(digest, self._share) and (nearest := self._near.nearest(asked)):
            number, likeness = nearest
            question = self._exact[self._sample[number]]
            return self._match(place, question, f"nearly asks {question} ({likeness:.2f} alike).", exact=False)
        return None

    def limits(self) -> str | None:
        """What was not looked at, in a sentence; None where all was."""
        return _limits(self._share, "questions", len(self._sample), len(self._texts))

    @staticmethod
    def _match(place: Place, question: Question, what: str, *, exact: bool) -> Match:
        message = f"{what} Drop it, or do not judge the model by {question.benchmark}."
        finding = at(place, Code.BENCHMARK_OVERLAP, message, other=question.place.row)
        return Match(finding, question.benchmark, exact)


def _whole(row: Row) -> str:
    """Prompt and answers as one normalised text. System messages are many rows' own, and say nothing of one."""
    return normalised("\n".join(_said(part) for _, part in parts(row)))


def _said(part: str | list[ChatMessage]) -> str:
    if isinstance(part, str):
        return part
    return "\n".join(message.text for message in part if message.role not in {"system", "developer"})


def _is_of(digest: bytes, share: float) -> bool:
    """Whether a row is of the share that is looked at; by the half of its digest that does not hold rows out."""
    return share >= 1 or int.from_bytes(digest[8:], "big") < share * 2**64


def _order_of(text: str) -> bytes:
    return blake2b(text.encode(errors="replace"), digest_size=8).digest()


def _limits(share: float, what: str, looked_in: int, there: int) -> str | None:
    rows = f"{share:.0%} of the training rows" if share < 1 else "all training rows"
    if share >= 1 and looked_in == there:
        return None
    return (
        f"Near matches were looked for in {rows}, with {looked_in} of {there} {what}, drawn by hash; exact ones in all."
    )
