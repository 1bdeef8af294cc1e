"""Finds texts that are nearly one of many: candidates by MinHash, each then compared in full."""

import numpy as np
from datasketch import MinHash, MinHashLSH

from worker.training.shingles import Shingles, jaccard, shingles

THRESHOLD = 0.8
"""Jaccard; what Lee et al. 2022 call near, and the usual choice since. Some 1 word in 14 differs."""
BANDS, HASHES_A_BAND = 15, 5
"""Of pairs at the threshold 1 in 400 is missed, (1 - 0.8^5)^15; of unlike ones (0.1) 1 in 6,700 is compared in vain."""
MIN_SHINGLES = 20
"""Of fewer, one letter changes more than the threshold allows, and chance has a say."""
COMMON_SHARE = 0.1
"""What more rows than this have, and more than 5, is a template's or a language's, and tells none of them apart."""
COMMON_ROWS = 5
COMMON_SAMPLE = 2_000
"""Rows that this is counted in."""


def _as_it_is(value: int) -> int:
    return value


_SEED = MinHash(num_perm=BANDS * HASHES_A_BAND, hashfunc=_as_it_is)


class NearIndex:
    """Normalised texts, by their numbers in the list."""

    def __init__(self, texts: list[str]) -> None:
        sets = [shingles(text) for text in texts]
        self._common = _common(sets)
        self._sets = [self._telling(one) for one in sets]
        self._candidates = MinHashLSH(num_perm=len(_SEED), params=(BANDS, HASHES_A_BAND))
        for number, one in enumerate(self._sets):
            if len(one) >= MIN_SHINGLES:
                self._candidates.insert(number, _signature(one), check_duplication=False)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """The text that a normalised one is most like, and how much, from the threshold to 1."""
        asked = self._telling(shingles(text))
        if len(asked) < MIN_SHINGLES:
            return None
        likeness = {number: jaccard(asked, self._sets[number]) for number in self._candidates.query(_signature(asked))}
        # Of several the first, in whatever order the candidates come.
        best = max(likeness, key=lambda number: (likeness[number], -number), default=None)
        return None if best is None or likeness[best] < THRESHOLD else (best, likeness[best])

    def _telling(self, one: Shingles) -> Shingles:
        """Without what is common."""
        if not len(self._common):
            return one
        at = np.searchsorted(self._common, one)
        at[at == len(self._common)] = 0
        telling: Shingles = one[self._common[at] != one]
        return telling


def _common(sets: list[Shingles]) -> Shingles:
    sample = sets[:: len(sets) // COMMON_SAMPLE + 1]
    if not sample:
        return np.empty(0, np.uint32)
    values, counts = np.unique(np.concatenate(sample), return_counts=True)
    common: Shingles = values[counts > max(COMMON_ROWS, COMMON_SHARE * len(sample))]
    return common


def _signature(one: Shingles) -> MinHash:
    signature = _SEED.copy()  # a new one would draw its permutations again
    signature.update_batch(one.tolist())
    return signature
