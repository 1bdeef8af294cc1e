"""Reading a file through without a tokenizer: what it is, how many rows it has, what its texts say of each."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.files import formats
from app.files.checks import check_row
from app.files.digests import held_out, row_digest
from app.files.findings import Finding, Place
from app.files.report import Container, Conversion, FileName
from app.files.rows import Row
from worker.training.duplicates import Duplicates
from worker.training.inspection import Findings

SHOWN_CHARACTERS = 500
SHOWN_ITEMS = 20
"""Of a row that shows how rows are converted."""


@dataclass(slots=True)
class Survey:
    """What one reading has shown; the rows themselves are read again."""

    name: FileName
    path: Path
    format: Container
    rows: int
    """All there are, those that cannot be read among them."""
    readable: int
    digests: "array[int]"
    """The first half of each readable row's digest, in their order."""

    method: str
    fits: bool
    """Whether the method takes rows of this shape."""
    wanted: Callable[[bytes], bool] = field(default=lambda _: True)
    """Which rows, by their digests."""

    def read(self) -> Iterator[tuple[Place, Row]]:
        """The readable rows once more, those that are wanted; none where the method does not take them."""
        if not self.fits:
            return
        with self.path.open("rb") as file:
            readable = (item for item in formats.read(file, self.method) if not isinstance(item, Finding))
            for (place, row), digest in zip(readable, self.digests, strict=True):
                if self.wanted(digest.to_bytes(8, "big")):
                    yield place, row

    def held_out(self, share: float) -> "Survey":
        """Its rows that are kept for validation."""
        return replace(self, fits=self.fits and share > 0, wanted=lambda digest: held_out(digest, share))

    def trained(self, share: float) -> "Survey":
        """The others."""
        return replace(self, wanted=lambda digest: not held_out(digest, share))


def survey(name: FileName, path: Path, method: str, findings: Findings) -> Survey:
    """Read a file through; never raises for what is in it."""
    duplicates, digests = Duplicates(), array("Q")
    rows = readable = 0
    with path.open("rb") as file:
        reading = formats.read(file, method)
        for item in reading:
            if isinstance(item, Finding):
                findings.add(name, item)
                rows = max(rows, item.row or 0)
                continue
            place, row = item
            rows, readable = place.row, readable + 1
            for finding in check_row(place, row):
                findings.add(name, finding)
            digest = row_digest(row)
            digests.append(int.from_bytes(digest[:8], "big"))
            duplicates.add(place, digest)
    for finding in duplicates.findings():
        findings.add(name, finding)
    fits = reading.shape is None or formats.mismatch(reading.shape, method) is None
    return Survey(name, path, _container(reading), rows, readable, digests, method, fits)


def _container(reading: formats.Reading) -> Container:
    return Container(
        container=reading.container,
        compression=reading.compression,
        shape=reading.shape,
        conversion=_shown(reading.conversion) if reading.conversion else None,
        ignored_fields=reading.ignored_fields,
    )


def _shown(conversion: formats.Conversion) -> Conversion:
    return Conversion(what=conversion.message, before=_shortened(conversion.before), after=_shortened(conversion.after))


def _shortened(value: Any) -> Any:
    """A row for the eye: what is absent left out, long texts and lists broken off."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items() if inner is not None}
    return [_shortened(inner) for inner in value[:SHOWN_ITEMS]] if isinstance(value, list) else value
