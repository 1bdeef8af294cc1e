"""Rows → token ids and labels in an Arrow file, each as long as it may be, counted on its way."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from app.files.findings import Code, Finding, at
from app.files.report import Lengths, PreparedFile, Truncated
from worker.training.inspection import lengths_of
from worker.training.labels import IGNORED, LabelledRow, Tokens

LIST = pa.list_(pa.int32())
SCHEMA = pa.schema([(name, LIST) for name in ("input_ids", "labels", "rows", "lines")])
"""A sequence, and the file's rows that are in it: one, or those of a pack."""
PREFERENCES = pa.schema([*SCHEMA, ("rejected_input_ids", LIST), ("rejected_labels", LIST)])
UNPAIRED = pa.schema([*SCHEMA, ("wanted", pa.bool_())])
GRADED = pa.schema([*SCHEMA, ("item", pa.string())])
"""A prompt, none of which is trained, and as JSON what its grader reads of the row."""
ROWS_A_GROUP = 2048
"""Rows held in memory before they are written, and of long rows so many tokens."""
TOKENS_A_GROUP = 1_000_000


class Limit(NamedTuple):
    """How long a row may be, and what becomes of one that is longer."""

    tokens: int
    truncate: bool
    room_behind: int = 0
    """Tokens beyond these that are kept free for an answer."""


class RowSet:
    """An Arrow file of rows that is being written; uncompressed, because who reads it maps it into memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = self.tokens = self.trained_tokens = 0
        self.of_file = 0
        """Rows of the file that are in it: fewer than its own where long texts are in pieces."""
        self.wanted: int | None = None
        """Of unpaired rows those whose answer is wanted."""
        self._last: int | None = None
        self.lengths = array("i")
        """Of each row, in tokens."""
        self._schema = schema
        self._writer = pa.ipc.new_stream(str(path), schema)
        self._group: list[dict[str, Any]] = []
        self._tokens = 0

    def add(self, row: LabelledRow) -> None:
        """Take a row that fits."""
        self.rows += 1
        self.of_file += row.place.row != self._last
        self._last = row.place.row
        if row.wanted is not None:
            self.wanted = (self.wanted or 0) + row.wanted
        for sequence in sequences(row):
            self.tokens += len(sequence.input_ids)
            self._tokens += len(sequence.input_ids)
            self.trained_tokens += trained(sequence.labels)
        self.lengths.append(length(row))
        self._group.append(_as_record(row))
        if len(self._group) == ROWS_A_GROUP or self._tokens >= TOKENS_A_GROUP:
            self._write()

    def close(self) -> None:
        """Write what is left."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._tokens = [], 0

    def described(self, truncated_rows: int) -> PreparedFile:
        """What is in the file, once it is closed."""
        return PreparedFile(
            rows=self.rows,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            longest_row=max(self.lengths),
            truncated_rows=truncated_rows,
            wanted=self.wanted,
            **digest_of(self.path),
        )


def digest_of(path: Path) -> dict[str, Any]:
    """Digest and size of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _as_record(row: LabelledRow) -> dict[str, Any]:
    record = {
        "input_ids": row.input_ids,
        "labels": row.labels,
        "rows": [row.place.row],
        "lines": [row.place.line],
    }
    if row.rejected is not None:
        record |= {"rejected_input_ids": row.rejected.input_ids, "rejected_labels": row.rejected.labels}
    if row.wanted is not None:
        record["wanted"] = row.wanted
    if row.item is not None:
        record["item"] = msgspec.json.encode(row.item).decode()
    return record


def sequences(row: LabelledRow) -> list[Tokens]:
    """What the model sees of a row: one sequence, or of a preference two."""
    first = Tokens(row.input_ids, row.labels)
    return [first] if row.rejected is None else [first, row.rejected]


def length(row: LabelledRow) -> int:
    """Tokens of a row's longest sequence."""
    return max(len(sequence.input_ids) for sequence in sequences(row))


def trained(labels: list[int]) -> int:
    """Labels that are learnt. The first predicts nothing: the loss is of each token after the first."""
    return len(labels) - labels.count(IGNORED)


def pieces(rows: Iterable[LabelledRow | Finding], tokens: int) -> Iterator[LabelledRow | Finding]:
    """Texts longer than so many tokens in pieces of that length, so that none of a document is lost."""
    for row in rows:
        if isinstance(row, Finding) or len(row.input_ids) <= tokens:
            yield row
            continue
        for start in range(0, len(row.input_ids) - 1, tokens):  # one token more would learn nothing
            ids, labels = (column[start : start + tokens] for column in (row.input_ids, row.labels))
            yield replace(row, input_ids=ids, labels=labels)


class Fitting:
    """Rows on their way into a set: those that are too long are cut where that is wished, else refused."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._lengths = array("i")
        self.truncated_rows = self._lost_prompt = self._lost_trained = 0

    def fitted(self, row: LabelledRow) -> tuple[LabelledRow | None, Finding | None]:
        """The row as it is trained on, or None; and what is to be said of it."""
        self._lengths.append(length(row))
        if length(row) <= self._limit.tokens:
            if _is_learnt(row):
                return row, None
            return None, at(row.place, Code.NOTHING_TRAINED, "there is nothing in it to learn. Add an answer.")
        if not self._limit.truncate:
            return None, _over_long(row, self._limit)
        cut = _cut(row, self._limit.tokens)
        if not _is_learnt(cut):
            message = f"cut to {self._limit.tokens} tokens, nothing of the answer is left. Shorten its prompt."
            return None, at(row.place, Code.NOTHING_TRAINED, message)
        return cut, self._truncated(row, cut)

    @property
    def lengths(self) -> Lengths | None:
        """Of the rows before anything was cut."""
        return lengths_of(self._lengths)

    @property
    def truncated(self) -> Truncated:
        """What was cut away."""
        return Truncated(rows=self.truncated_rows, prompt_tokens=self._lost_prompt, trained_tokens=self._lost_trained)

    def _truncated(self, row: LabelledRow, cut: LabelledRow) -> Finding:
        lost = sum(len(one.input_ids) for one in sequences(row)) - sum(len(one.input_ids) for one in sequences(cut))
        answers = sum(trained(one.labels) for one in sequences(row)) - sum(
            trained(one.labels) for one in sequences(cut)
        )
        self.truncated_rows += 1
        self._lost_trained += answers
        self._lost_prompt += lost - answers
        parts = [f"{answers} trained ones"] * bool(answers) + [f"{lost - answers} of the prompt"] * (lost > answers)
        message = f"cut from {length(row)} to {self._limit.tokens} tokens: lost are {' and '.join(parts)}."
        return at(row.place, Code.TRUNCATED, message)


def _over_long(row: LabelledRow, limit: Limit) -> Finding:
    if row.item is not None:
        return at(
            row.place,
            Code.OVER_LONG,
            f"its prompt has {length(row)} tokens, and max_completion_length leaves {limit.tokens} of"
            f" {limit.tokens + limit.room_behind} for it. Shorten it, send a smaller max_completion_length, or raise"
            " max_length as far as the model's context allows.",
        )
    return at(
        row.place,
        Code.OVER_LONG,
        f"it has {length(row)} tokens, and max_length is {limit.tokens}. Shorten it, raise max_length as far as the"
        " model's context allows, or send truncate: true to cut such rows at the end.",
    )


def _cut(row: LabelledRow, tokens: int) -> LabelledRow:
    rejected = row.rejected and Tokens(row.rejected.input_ids[:tokens], row.rejected.labels[:tokens])
    return replace(row, input_ids=row.input_ids[:tokens], labels=row.labels[:tokens], rejected=rejected)


def _is_learnt(row: LabelledRow) -> bool:
    return row.item is not None or all(trained(sequence.labels[1:]) for sequence in sequences(row))
