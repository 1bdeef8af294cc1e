"""A disk that is small enough to be filled: a tmpfs of some megabytes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """Over a folder; the test is skipped by name where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"needs to mount a small disk, and may not: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(
            [shutil.which("umount") or "umount", "--lazy", str(folder)], check=True
        )  # what still writes there is ended later


@contextmanager
def filled(folder: Path, *, free: int) -> Iterator[None]:
    """Until so many bytes are left, for a while."""
    filler = folder / "filler"
    usage = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, usage.f_bavail * usage.f_frsize - free)
    try:
        yield
    finally:
        filler.unlink()
