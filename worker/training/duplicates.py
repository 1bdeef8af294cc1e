"""Finds rows that a file has more than once, in 16 bytes a row."""

from array import array
from collections.abc import Iterator

import numpy as np

from app.files.findings import Code, Finding, Place, at


class Duplicates:
    """Rows by their digests.

    Half of a digest is kept: that two rows among ten million differ and agree in it happens in one file of 370,000.
    """

    def __init__(self) -> None:
        self._digests = array("Q")
        self._rows = array("I")
        self._lines = array("I")  # 0 where there are none

    def add(self, place: Place, digest: bytes) -> None:
        """Remember a row; places come in the order of the file."""
        self._digests.append(int.from_bytes(digest[:8], "big"))
        self._rows.append(place.row)
        self._lines.append(place.line or 0)

    def findings(self) -> Iterator[Finding]:
        """Each later occurrence, naming the first, in the order of the file."""
        digests = np.frombuffer(self._digests, np.uint64)
        order = np.argsort(digests, kind="stable").astype(np.uint32)
        ordered = digests[order]
        later = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        firsts = order[np.searchsorted(ordered, ordered[later])]
        repeats = order[later]
        del ordered, order, later
        for index in np.argsort(repeats):
            first = self._place(int(firsts[index]))
            message = f"the same row as {first}. Drop it, unless it shall count twice."
            yield at(self._place(int(repeats[index])), Code.DUPLICATE, message, other=first.row)

    def _place(self, index: int) -> Place:
        return Place(self._rows[index], self._lines[index] or None)
