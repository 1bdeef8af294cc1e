"""Finds texts that stand word for word within longer ones."""

import numpy as np
import numpy.typing as npt

from worker.training.shingles import characters

WINDOW = 64
"""Characters by which a text is found: some 13 words, by which GPT-3's training data was cleaned of benchmarks (Brown
et al. 2020, appendix C). Shorter texts are phrases that many rows have."""
_BASE = 0x9E3779B97F4A7C15  # odd, its bits even: 2^64 / golden ratio


class Passages:
    """Normalised texts, by their numbers in the list; those shorter than the window are never found."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._by_start: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            if len(text) >= WINDOW:
                self._by_start.setdefault(int(_windows(text[:WINDOW])[0]), []).append(number)
        self._starts = np.array(sorted(self._by_start), np.uint64)

    def within(self, text: str) -> int | None:
        """The first of the texts that a normalised one has in it."""
        if len(text) < WINDOW or not len(self._starts):
            return None
        windows = _windows(text)
        at = np.searchsorted(self._starts, windows)
        at[at == len(self._starts)] = 0
        for start in windows[self._starts[at] == windows]:
            for number in self._by_start[int(start)]:
                if self._texts[number] in text:
                    return number
        return None


def _windows(text: str) -> npt.NDArray[np.uint64]:
    """A polynomial hash modulo 2^64 of each window, by doubling: a hash of two halves is one of theirs."""
    hashes = characters(text)
    width, power = 1, _BASE
    while width < WINDOW:
        hashes = hashes[:-width] * np.uint64(power) + hashes[width:]
        width, power = 2 * width, power * power % 2**64
    return hashes
