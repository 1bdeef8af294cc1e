"""A child of `finetuned up`: said to be dead, started again, ended for sure."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from app.cli import process
from app.cli.process import Child, last_lines, run_to_end
from tests.running import wait_for


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make_child(stack: ExitStack, folder: Path, script: str) -> Child:
    """A shell script as a part called `part`; killed at the end of the test."""
    child = Child("part", ["/bin/sh", "-c", script], dict(os.environ), folder / "logs" / "part.log")
    stack.callback(child.end_by, 0.0)
    return child


def said(child: Child) -> str:
    """What it says once it is found dead."""
    return wait_for(child.tend, 10)


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("exit 3", "exit 3"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("kill -40 $$", "killed by signal 40"),
    ],
)
def test_a_death_is_told_with_its_cause_and_the_last_lines(
    stack: ExitStack, tmp_path: Path, script: str, how: str
) -> None:
    child = make_child(stack, tmp_path, f"seq 1 9; {script}")
    child.start()

    assert said(child).splitlines() == [
        f"part ended ({how}); starting it again in 0.5 s",
        *(f"    {number}" for number in range(5, 10)),
    ]


def test_it_is_started_again_after_pauses_that_grow(stack: ExitStack, tmp_path: Path) -> None:
    child = make_child(stack, tmp_path, "exit 1")
    child.start()
    first = said(child)
    told_at = time.monotonic()
    second = said(child)

    assert "in 0.5 s" in first
    assert "in 1 s" in second
    assert time.monotonic() - told_at >= 0.5


def test_the_pause_stops_growing_and_starts_anew_once_it_has_run_for_long(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LONGEST_PAUSE", 0.6)
    child = make_child(stack, tmp_path, f"test -e {tmp_path}/well && exec sleep 60; exit 1")
    child.start()
    pauses = [said(child).split(" in ")[1].split(" s")[0] for _ in range(3)]
    assert pauses == ["0.5", "0.6", "0.6"]

    monkeypatch.setattr(process, "SETTLED", 0.0)
    (tmp_path / "well").touch()
    wait_for(lambda: child.tend() is None and child.running)
    child.tend()
    child.kill()
    assert "in 0.5 s" in said(child)


def test_a_child_that_cannot_be_started_is_tried_again(stack: ExitStack, tmp_path: Path) -> None:
    child = make_child(stack, tmp_path, "exit 1")
    child.start()
    said(child)
    (tmp_path / "logs").rename(tmp_path / "moved")
    (tmp_path / "logs").touch()  # no folder to log in: as good as a full disk
    assert "part does not start (" in said(child)

    (tmp_path / "logs").unlink()
    assert "part ended (exit 1)" in said(child)


def test_what_ignores_its_signal_is_killed_with_all_it_started(stack: ExitStack, tmp_path: Path) -> None:
    child = make_child(stack, tmp_path, "trap '' TERM; sleep 60 & echo $!; wait; sleep 60")
    child.start()
    wait_for(lambda: last_lines(child.log, 1))
    grandchild = psutil.Process(int(last_lines(child.log, 1)[0]))

    child.ask_to_end()
    child.end_by(time.monotonic() + 0.3)

    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL
    wait_for(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE, 5)


def test_what_ends_when_asked_is_waited_for(stack: ExitStack, tmp_path: Path) -> None:
    child = make_child(stack, tmp_path, "trap 'sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    child.start()
    wait_for(lambda: last_lines(child.log, 1))

    child.ask_to_end()
    child.end_by(time.monotonic() + 10)

    assert child.process is not None
    assert child.process.returncode == 0


def test_a_terminals_ctrl_c_does_not_reach_it(stack: ExitStack, tmp_path: Path) -> None:
    child = make_child(stack, tmp_path, "exec sleep 60")
    child.start()

    assert child.process is not None
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)


def test_a_long_log_is_set_aside_at_the_start(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOG_LIMIT", 10)
    child = make_child(stack, tmp_path, "echo 0123456789")
    run_to_end(child)
    run_to_end(child)
    run_to_end(child)

    assert child.log.read_text() == "0123456789\n"
    assert child.log.with_suffix(".log.1").read_text() == "0123456789\n"
