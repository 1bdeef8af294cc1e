"""Room on disks: how much there is, how much is asked for, and that there is none."""

import errno
import os
import shutil
from pathlib import Path
from typing import Literal

Disk = Literal["scratch", "storage"]
"""A worker's own, where it trains; and where results are kept."""

MARGIN = 16 * 1024**2
"""Bytes asked for beside what is known to be written: logs, small files, a file system's own."""
SHARE = 0.1
"""Of what is to be written, likewise: sizes are forecasts, and others write to the same disk."""
_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS = "No space left on device"
"""What safetensors and tokenizers say, in exceptions that are no `OSError`."""
_OF_TORCH = ("iostream error", "unexpected pos", "PytorchStreamWriter failed")
"""What torch says of any write that fails, for whatever reason."""


class NoSpace(OSError):
    """A disk has not the room for what is to be written, or had not.

    `needed_bytes`: asked for before anything was written; None: a write failed, and nobody knows.
    """

    def __init__(self, disk: Disk, needed_bytes: int | None = None) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.disk: Disk = disk
        self.needed_bytes = needed_bytes


def free(folder: Path) -> int:
    """Bytes that this process may still write there. Raises `OSError`."""
    return shutil.disk_usage(folder).free


def with_margin(size: int) -> int:
    """Bytes to ask for, where so many are to be written."""
    return int(size * (1 + SHARE)) + MARGIN


def require(disk: Disk, folder: Path, size: int) -> None:
    """Raises `NoSpace` unless so many bytes can be written there, with a margin."""
    needed = with_margin(size)
    if free(folder) < needed:
        raise NoSpace(disk, needed)


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether it came of a write to that folder's disk for which there was no room."""
    if isinstance(error, OSError):
        return error.errno in _NUMBERS
    if _WORDS in str(error):
        return True
    return any(words in str(error) for words in _OF_TORCH) and free(folder) < MARGIN


def as_text(size: int) -> str:
    """In the unit that a person would use."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
