"""What is found while files are read: each finding a line of a JSONL, and their sum in the report."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec
import numpy as np

from app.files.findings import SEVERITY, Code, Finding
from app.files.report import LISTED, Bin, FileName, Found, Lengths, Where

BINS = 20


class Findings:
    """Of all files of a preparation. Written as they come, so that a file with an error in each row takes no memory."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._kinds: dict[tuple[FileName, Code], _Kind] = {}
        self._errors: Counter[FileName] = Counter()
        self._last_error: dict[FileName, int | None] = {}

    def add(self, file: FileName, finding: Finding) -> None:
        """Note one. Those of one row come one after the other."""
        self._out.write(msgspec.json.encode({"file": file, **msgspec.structs.asdict(finding)}) + b"\n")
        self._kinds.setdefault((file, finding.code), _Kind(str(finding))).add(finding)
        if finding.severity == "error" and (finding.row is None or self._last_error.get(file) != finding.row):
            self._last_error[file] = finding.row
            self._errors[file] += 1

    def rows_with_errors(self, file: FileName) -> int:
        """How many rows cannot be trained on."""
        return self._errors[file]

    def summed(self, rows: dict[FileName, int]) -> list[Found]:
        """By kind, errors first, in the order in which they were found; `rows` are all of each file."""
        found = [
            Found(
                file=file,
                code=code,
                severity=SEVERITY[code],
                rows=kind.rows,
                share=kind.rows / max(1, rows[file]),
                example=kind.example,
                first=sorted(kind.first, key=lambda where: where.row or 0),
            )
            for (file, code), kind in self._kinds.items()
        ]
        return sorted(found, key=lambda one: one.severity != "error")


@dataclass(slots=True)
class _Kind:
    example: str
    rows: int = 0
    first: list[Where] = field(default_factory=list)
    last: int | None = None

    def add(self, finding: Finding) -> None:
        if finding.row is not None and finding.row == self.last:
            return  # one more of the same row
        self.last = finding.row
        self.rows += 1
        if len(self.first) < LISTED:
            self.first.append(Where(row=finding.row, line=finding.line, other=finding.other))


def lengths_of(measured: "array[int]") -> Lengths | None:
    """Quantiles (of the rows there are, none between two) and a histogram of equal bins; None of no rows."""
    if not measured:
        return None
    lengths = np.frombuffer(measured, dtype=np.int32)
    p50, p90, p95, p99 = np.quantile(lengths, (0.5, 0.9, 0.95, 0.99), method="inverted_cdf")
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // BINS))
    edges = np.arange(low - 1, high + width, width)
    counts, _ = np.histogram(lengths, bins=edges + 0.5)  # lengths are whole, so none lies on an edge
    bins = [
        Bin(above=int(above), upto=int(upto), rows=int(rows))
        for above, upto, rows in zip(edges, edges[1:], counts, strict=False)
    ]
    return Lengths(
        min=low,
        mean=round(float(lengths.mean()), 2),
        p50=int(p50),
        p90=int(p90),
        p95=int(p95),
        p99=int(p99),
        max=high,
        histogram=bins,
    )
