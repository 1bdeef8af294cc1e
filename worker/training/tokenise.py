"""From uploaded files to what training reads: checked, tokenised, labelled, in Parquet. Needs no torch."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.files import formats
from app.jobs.prepared import Prepared, PreparedFile
from app.jobs.spec import JobSpec
from app.registry import identity
from worker import messages
from worker.training import failures
from worker.training.base import BaseFolder, locate, parent_of
from worker.training.child import Report
from worker.training.labels import IGNORED, LabelledRow, RowUnusable, TrainOn, labelled

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("line", pa.int32())])
ROWS_A_GROUP = 2048
"""Rows held in memory before they are written, and of long rows so many tokens."""
TOKENS_A_GROUP = 1_000_000


class Limit(NamedTuple):
    """How long a row may be, and what becomes of one that is longer."""

    tokens: int
    truncate: bool


def prepare(work_dir: Path, report: Report) -> Prepared:
    """WORKDIR/job.json and the uploaded files → Parquet files of tokens and labels, and prepared.json last."""
    report(messages.Phase(phase="preparing"))
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    base = locate(spec.model, work_dir)
    config = _text_config(base)
    tokenizer = _tokenizer(base)
    limit = _limit(spec, config)
    train_on: TrainOn = "all" if spec.hyperparameters.train_on == "all" else "completion"
    files = {
        name: _prepare_file(work_dir, name, tokenizer, train_on, limit)
        for name in ("training_file", "validation_file")
        if (work_dir / name).exists()
    }
    prepared = Prepared(
        base=base.identity(),
        parent=parent_of(work_dir),
        model_type=str(config.get("model_type", "")),
        hidden_size=_number(config, "hidden_size", "n_embd", "d_model"),
        context_length=_context_length(config),
        train=files["training_file"],
        validation=files.get("validation_file"),
    )
    for name, file in files.items():
        report(messages.Notice(level="info", message=_sentence(spec, name, file)))
    write_last(work_dir / "prepared.json", prepared.model_dump_json(indent=2))
    return prepared


def _prepare_file(
    work_dir: Path, name: str, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, limit: Limit
) -> PreparedFile:
    target = work_dir / {"training_file": "train.parquet", "validation_file": "validation.parquet"}[name]
    seen = _Count()
    try:
        with (work_dir / name).open("rb") as source, pq.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
            rows = labelled(formats.read_rows(source), tokenizer, train_on)
            for group in _groups(seen.counted(_fitted(rows, limit))):
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    except (formats.UnusableFile, RowUnusable) as error:
        raise failures.FileUnusable(name, str(error)) from error
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PreparedFile(
        rows=seen.rows,
        tokens=seen.tokens,
        trained_tokens=seen.trained_tokens,
        longest_row=seen.longest_row,
        truncated_rows=seen.truncated_rows,
        sha256=digest,
    )


class _Count:
    """What passes by on its way to the file."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.trained_tokens = self.longest_row = self.truncated_rows = 0

    def counted(self, rows: Iterator[tuple[LabelledRow, bool]]) -> Iterator[dict[str, Any]]:
        for row, truncated in rows:
            self.rows += 1
            self.tokens += len(row.input_ids)
            self.trained_tokens += sum(label != IGNORED for label in row.labels)
            self.longest_row = max(self.longest_row, len(row.input_ids))
            self.truncated_rows += truncated
            yield {"input_ids": row.input_ids, "labels": row.labels, "line": row.line}


def _fitted(rows: Iterator[LabelledRow], limit: Limit) -> Iterator[tuple[LabelledRow, bool]]:
    """Rows that fit, cut where that is wished. Raises `RowUnusable`, naming the lines that are too long."""
    too_long: list[str] = []
    for row in rows:
        length = len(row.input_ids)
        if length <= limit.tokens:
            yield _learnt(row, "there is nothing in it to learn. Add an answer"), False
        elif limit.truncate:
            cut = LabelledRow(row.line, row.input_ids[: limit.tokens], row.labels[: limit.tokens])
            remedy = f"cut to {limit.tokens} tokens, nothing of the answer is left. Shorten its prompt"
            yield _learnt(cut, remedy), True
        else:
            too_long.append(f"line {row.line} ({length} tokens)")
    if too_long:
        listed = ", ".join(too_long[:5]) + (f" and {len(too_long) - 5} more" if len(too_long) > 5 else "")
        raise RowUnusable(
            f"rows longer than max_length {limit.tokens}: {listed}. Shorten them, raise max_length as far as the"
            " model's context allows, or send truncate: true to cut them at the end."
        )


def _learnt(row: LabelledRow, otherwise: str) -> LabelledRow:
    # The first label predicts nothing: the loss is of each token after the first.
    if all(label == IGNORED for label in row.labels[1:]):
        raise RowUnusable(f"line {row.line}: {otherwise}.")
    return row


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    tokens = 0
    for row in rows:
        group.append(row)
        tokens += len(row["input_ids"])
        if len(group) == ROWS_A_GROUP or tokens >= TOKENS_A_GROUP:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _tokenizer(base: BaseFolder) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged tokenizer.json the library raises nothing narrower
        raise identity.UnusableBase(
            "its tokenizer cannot be loaded. Copy tokenizer.json and tokenizer_config.json whole."
            f" {' '.join(str(error).split())[:300]}"
        ) from error


def _text_config(base: BaseFolder) -> dict[str, Any]:
    """`config.json`, or the part of it that describes the language model."""
    config = identity.read_config(base.path)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _limit(spec: JobSpec, config: dict[str, Any]) -> Limit:
    given = spec.hyperparameters
    context = _context_length(config)
    if given.max_length != "auto" and given.max_length > context:
        raise failures.SpecUnusable(
            "method.supervised.hyperparameters.max_length",
            f"max_length {given.max_length} is beyond the model's context of {context} tokens.",
        )
    return Limit(context if given.max_length == "auto" else given.max_length, given.truncate)


def _context_length(config: dict[str, Any]) -> int:
    return _number(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def _number(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise identity.UnusableBase(f"its config.json names none of {', '.join(names)}.")


def _sentence(spec: JobSpec, name: str, file: PreparedFile) -> str:
    share = 100 * file.trained_tokens / file.tokens
    cut = f", {file.truncated_rows} rows cut" if file.truncated_rows else ""
    return (
        f"{getattr(spec, name)}: {file.rows} rows, {file.tokens} tokens, {file.trained_tokens} of them trained"
        f" ({share:.0f} %), longest row {file.longest_row} tokens{cut}"
    )


def write_last(path: Path, content: str) -> None:
    """Write a file whole or not at all: its presence says that everything before it is complete."""
    arriving = path.with_suffix(".arriving")
    with arriving.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    arriving.replace(path)
