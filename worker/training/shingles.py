"""Texts as sets of pieces of five characters, and how alike two sets are.

Characters rather than words: the same in each language, also in those that write no spaces. Five, as is usual for
texts of the length of an e-mail (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.2.2). Sets of five
words (Lee et al. 2022, Deduplicating Training Data Makes Language Models Better) are made for documents of a web crawl:
of a question of twelve words, one other word leaves three shared of thirteen.
"""

import unicodedata

import numpy as np
import numpy.typing as npt

Shingles = npt.NDArray[np.uint32]
"""The pieces' hashes, each once, in ascending order."""

LENGTH = 5
MAX_CHARACTERS = 20_000
"""Of a text that is compared: some 5,000 tokens, whose signature takes 10 MB for a moment."""
# Odd multipliers, fixed. The upper half of a sum of products with 64 bits hashes 32-bit characters evenly (Lemire and
# Kaser 2014, Strongly Universal String Hashing Is Fast).
_MULTIPLIERS = np.random.default_rng(5).integers(2**63, size=LENGTH, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def normalised(text: str) -> str:
    """Without what does not tell two texts apart: case, how spaces and line ends lie, how accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def characters(text: str) -> npt.NDArray[np.uint64]:
    """A text as numbers, to compute with."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)


def shingles(text: str) -> Shingles:
    """The pieces of a normalised text; none of one that is shorter than a piece."""
    numbers = characters(text[:MAX_CHARACTERS])
    count = len(numbers) - LENGTH + 1
    if count < 1:
        return np.empty(0, np.uint32)
    sums = numbers[:count] * _MULTIPLIERS[0]
    for first in range(1, LENGTH):
        sums += numbers[first : first + count] * _MULTIPLIERS[first]
    ordered = np.sort((sums >> np.uint64(32)).astype(np.uint32))
    once: Shingles = ordered[np.append(True, ordered[1:] != ordered[:-1])]  # np.unique takes four times as long
    return once


def jaccard(one: Shingles, other: Shingles) -> float:
    """What they share of what they have together, 0 to 1."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    together = len(one) + len(other) - shared
    return shared / together if together else 0.0
