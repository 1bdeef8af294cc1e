"""Several rows in one sequence: which go together, what that saves, and a prepared set written anew in packs.

A pack holds whole rows, and no two of them see each other: the trainer restarts the positions at each row, and
attention keeps apart what restarted positions divide. Needs no torch.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PLACES = ("rows", "lines")
"""Columns in which a set may say where each row of a sequence is in its file."""
LIST = pa.list_(pa.int32())
TOKENS_A_BATCH = 1_000_000
"""Held in memory before they are written, 8 MB of them."""


def plan(lengths: npt.ArrayLike, capacity: int, *, most_rows: int | None = None) -> list[list[int]]:
    """Row numbers by pack: best-fit decreasing, by tokens at most 11/9 of the fewest packs possible (Johnson 1973).

    Packs of at most `capacity` tokens, the longest row's or more, and of `most_rows` rows. The same lengths make the
    same packs, in the order of their first rows; n rows take O(n log n).
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    if not tokens.size:
        return []
    if tokens.max() > capacity:
        raise ValueError(f"a row of {tokens.max()} tokens goes into no pack of {capacity}")
    shortest = int(tokens.min())
    longest_first = np.argsort(-tokens, kind="stable")
    packs: list[list[int]] = []
    open_packs: dict[int, list[list[int]]] = {}  # by the room they have left
    rooms: list[int] = []  # the same, ascending
    for row, length in zip(longest_first.tolist(), tokens[longest_first].tolist(), strict=True):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            pack, room = list[int](), capacity
            packs.append(pack)
        else:
            room = rooms[at]
            pack = open_packs[room].pop()
            if not open_packs[room]:
                del open_packs[room], rooms[at]
        pack.append(row)
        room -= length
        if room >= shortest and len(pack) != most_rows:
            if room not in open_packs:
                insort(rooms, room)
                open_packs[room] = []
            open_packs[room].append(pack)
    for pack in packs:
        pack.sort()
    return sorted(packs)


def saved_share(lengths: npt.ArrayLike, per_device_batch: int) -> float:
    """How much of what is computed would be padding: the share of tokens that packing saves, from 0 to 1.

    Unpacked, a batch is padded to its longest row. A random batch of b rows out of n has none longer than t with
    probability C(m, b) / C(n, b), where m rows have at most t tokens; that gives the expected longest row, so what an
    epoch is expected to compute, its last and smaller batch included. Packs are laid end to end, without padding:
    whatever their capacity, they compute the rows' own tokens. So a batch of one row leaves nothing to save.
    """
    tokens, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    rows = int(counts.sum())
    if not rows:
        return 0.0
    whole, rest = divmod(rows, per_device_batch)
    computed = whole * per_device_batch * _expected_longest(tokens, counts, per_device_batch) if whole else 0.0
    computed += rest * _expected_longest(tokens, counts, rest) if rest else 0.0
    return max(0.0, 1 - float(tokens @ counts) / computed)


def _expected_longest(tokens: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], batch: int) -> float:
    """Of `batch` rows drawn at random; `tokens` are the different lengths, ascending."""
    at_most = np.cumsum(counts)
    probability = np.ones(len(tokens))
    for drawn in range(batch):
        probability *= np.maximum(at_most - drawn, 0) / (at_most[-1] - drawn)
    return float(tokens @ np.diff(probability, prepend=0.0))


def lengths_of(rows: Path) -> npt.NDArray[np.int64]:
    """Tokens of each row of a prepared set."""
    with pa.memory_map(str(rows)) as file:
        batches = [pc.list_value_length(batch.column("input_ids")) for batch in pa.ipc.open_stream(file)]
    return np.concatenate(batches or [np.empty(0)]).astype(np.int64)


def pack(rows: Path, packed: Path, capacity: int, *, most_rows: int | None = None) -> int:
    """A prepared set, unpacked → the same in packs, in another file. Returns how many there are.

    A column more than the set has: `seq_lengths`, TRL's name for the tokens of each row of a pack. Reads the rows where
    they lie, in the order that packs need them; memory holds the plan and one batch.
    """
    lengths = lengths_of(rows)
    packs = plan(lengths, capacity, most_rows=most_rows)
    with pa.memory_map(str(rows)) as file:
        table = pa.ipc.open_stream(file).read_all()
        ids, labels = _Column(table.column("input_ids")), _Column(table.column("labels"))
        places = {name: _one_each(table.column(name)) for name in PLACES if name in table.column_names}
        names = ("input_ids", "labels", "seq_lengths", *places)
        with pa.ipc.new_stream(str(packed), pa.schema([(name, LIST) for name in names])) as writer:
            for batch in _batches(packs, lengths):
                in_order = np.fromiter((row for pack in batch for row in pack), np.int64)
                tokens = lengths[in_order]
                rows_before = np.cumsum([0, *(len(pack) for pack in batch)])
                tokens_before = np.concatenate([[0], np.cumsum(tokens)])[rows_before]
                columns = [
                    _lists(tokens_before, ids.of(in_order, tokens)),
                    _lists(tokens_before, labels.of(in_order, tokens)),
                    _lists(rows_before, pa.array(tokens, pa.int32())),
                    *(_lists(rows_before, of_row.take(pa.array(in_order))) for of_row in places.values()),
                ]
                writer.write_batch(pa.record_batch(columns, names=names))
    return len(packs)


def _batches(packs: list[list[int]], lengths: npt.NDArray[np.int64]) -> Iterator[list[list[int]]]:
    batch, tokens = list[list[int]](), 0
    for pack in packs:
        batch.append(pack)
        tokens += int(lengths[pack].sum())
        if tokens >= TOKENS_A_BATCH:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _lists(offsets: npt.NDArray[np.int64], values: pa.Int32Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _one_each(column: pa.ChunkedArray) -> pa.Int32Array:
    """The one value, or null, that each row's list has."""
    values = pc.list_flatten(column).combine_chunks()
    if len(values) != len(column):
        raise ValueError("the set is packed already")
    return values


class _Column:
    """A column of lists by row number, read where it lies."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._first_rows = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
        self._begins = np.concatenate([chunk.offsets.to_numpy()[:-1] for chunk in column.chunks])
        self._values = [chunk.values.to_numpy() for chunk in column.chunks]

    def of(self, rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> pa.Int32Array:
        """The lists of these rows, end to end."""
        chunks = np.searchsorted(self._first_rows, rows, side="right") - 1
        begins = self._begins[rows]
        places = zip(chunks.tolist(), begins.tolist(), (begins + lengths).tolist(), strict=True)
        return pa.array(np.concatenate([self._values[chunk][begin:end] for chunk, begin, end in places]))
