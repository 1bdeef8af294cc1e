"""What preparing left, as the rows that TRL's trainer takes."""

from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset


def rows_of(path: Path) -> Dataset:
    """`input_ids` and `labels` of a prepared file, in the order of its lines."""
    return Dataset(pq.read_table(path, columns=["input_ids", "labels"]))
