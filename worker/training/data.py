"""What preparing left, as the rows that TRL's trainer takes: read where they lie on the disk."""

from pathlib import Path

from datasets import Dataset

from worker.training import packing


def rows_of(path: Path) -> Dataset:
    """`input_ids` and `labels` of a prepared set, memory-mapped: its rows in order, or its packs with `seq_lengths`."""
    rows = Dataset.from_file(str(path))
    return rows.remove_columns([name for name in packing.PLACES if name in rows.column_names])
