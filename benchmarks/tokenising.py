"""How fast rows become tokens with labels, beside `datasets.map` on both cores; a part of `benchmarks.data`.

All make ids and labels of the assistant's turns of the same ChatML conversations with the same tokenizer, each
in a process of its own: `labelled` by a template without marks, where turns are found by what the template renders, and
by one with `{% generation %}` marks; `datasets.map(num_proc=2)` by the one with marks, by rows and in batches, as TRL
does it. Its processes share no cores, so the tokenizer's own threads are off there.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from app.files import formats
from tests import tiny
from worker.training.labels import LabelledRow, labelled

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
OURS, MAPS = ("labelled, no marks", "labelled, marks"), ("datasets.map, rows", "datasets.map, batches")


def compare(path: Path) -> None:
    """Print the table and the ratio for a file of chat rows."""
    console, rows = Console(width=120), sum(1 for _ in path.open())
    table = Table(title="rows → tokens with labels")
    for column in ("by", "seconds", "rows/s"):
        table.add_column(column, justify="left" if column == "by" else "right")
    seconds: dict[str, float] = {}
    for way in (*OURS, *MAPS):
        command = [sys.executable, "-m", "benchmarks.tokenising", str(path), way]
        parallel = {"TOKENIZERS_PARALLELISM": "false"} if way in MAPS else {}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | parallel)
        seconds[way] = json.loads(done.stdout)
        table.add_row(way, f"{seconds[way]:.2f}", f"{rows / seconds[way]:,.0f}")
    console.print(table)
    slower, faster = max(seconds[way] for way in OURS), min(seconds[way] for way in MAPS)
    console.print(f"the faster datasets.map / the slower of ours: {faster / slower:.2f} (at least 1)")


def by_labelled(path: Path, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """As preparing does it, less the writing."""
    tokenizer.chat_template = template
    with path.open("rb") as file:
        made = labelled(formats.read_rows(file), tokenizer, "completion")
        return sum(isinstance(row, LabelledRow) for row in made)


def by_map(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, batched: bool) -> int:
    """As TRL's trainer does it."""
    tokenizer.chat_template = MARKED
    made = rows.map(
        _batches if batched else _each,
        batched=batched,
        num_proc=2,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=rows.column_names,
        load_from_cache_file=False,
    )
    return len(made)


def _each(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    made = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    return {"input_ids": made["input_ids"], "labels": _labels(made["input_ids"], made["assistant_masks"])}


def _batches(rows: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    made = tokenizer.apply_chat_template(rows["messages"], return_dict=True, return_assistant_tokens_mask=True)
    both = zip(made["input_ids"], made["assistant_masks"], strict=True)
    return {"input_ids": made["input_ids"], "labels": [_labels(ids, mask) for ids, mask in both]}


def _labels(ids: list[int], mask: list[int]) -> list[int]:
    return [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]


def main() -> None:
    """All ways; or one, once, without what is read and imported before."""
    path = Path(sys.argv[1])
    if len(sys.argv) == 2:
        compare(path)
        return
    way = sys.argv[2]
    datasets.disable_progress_bars()
    tokenizer = tiny.make_tokenizer()
    count = sum(1 for _ in path.open())
    rows = datasets.Dataset.from_list([json.loads(line) for line in path.open()]) if way in MAPS else None
    began = time.perf_counter()
    if rows is None:
        made = by_labelled(path, tokenizer, MARKED if way == OURS[1] else PLAIN)
    else:
        made = by_map(rows, tokenizer, batched=way == MAPS[1])
    seconds = time.perf_counter() - began
    assert made == count
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
