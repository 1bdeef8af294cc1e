"""Counts the bytes of tensors that are alive, whatever device they are on, and keeps their highest sum."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Inside = Callable[[Any, tuple[Any, ...]], int]
"""Bytes that an operation takes for itself and frees again, by the operation and its arguments."""


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no such hook
    """While it is entered, each storage that an operation makes is counted until nobody holds it.

    What an operation allocates for itself and frees again is seen only where `inside` says it. Counts fake tensors as
    what they stand for.
    """

    def __init__(self, inside: Inside | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.bytes = 0
        """Alive at this moment."""
        self.peak = 0
        self.part = ""
        """What is counted from now on belongs to it."""
        self.parts: Counter[str] = Counter()
        """Bytes alive by part."""
        self.moment = ""
        """What is going on, for who wants to know when a peak was."""
        self.highest: dict[str, dict[str, int]] = {}
        """Bytes by part at the peak of each moment."""
        self._peaks: Counter[str] = Counter()
        self._inside = inside
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], str]] = {}

    def count(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count one that was made before; one that is counted goes over to `part`. Views of it count nothing."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if (known := self._alive.get(key)) is not None:
            if part is not None:
                self.parts[known[1]] -= size
                self.parts[part] += size
                self._alive[key] = (known[0], part)
            return

        def gone(_: object) -> None:
            _, its = self._alive.pop(key)
            self.bytes -= size
            self.parts[its] -= size

        its = self.part if part is None else part
        self._alive[key] = (weakref.ref(storage, gone), its)
        self.bytes += size
        self.parts[its] += size
        self._reach(0)

    def _reach(self, inside: int) -> None:
        """Note a new height, with so much that is no tensor."""
        total = self.bytes + inside
        if total > self._peaks[self.moment]:
            self._peaks[self.moment] = total
            self.peak = max(self.peak, total)
            self.highest[self.moment] = {**self.parts, self.part: self.parts[self.part] + inside}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and the guard against it takes longer than counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        if self._inside is not None and (inside := self._inside(func, args)):
            self._reach(inside)
        return made
