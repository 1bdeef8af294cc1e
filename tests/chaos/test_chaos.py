"""A short run of the script, as `make chaos` has it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import ENDS_WITHIN, STUCK


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_is_lost_nor_done_twice_whoever_is_killed() -> None:
    arguments = ["--kills", "6", "--seed", "1", "--every", "6", "--minutes", str((1800 - STUCK - ENDS_WITHIN) / 60 / 2)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "everything held" in done.stdout
