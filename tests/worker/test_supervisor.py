"""What a worker makes of a trainer's end: processes that are silent, that are deaf, and that the kernel kills."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.work.lifecycle import Claim
from app.work.status import WorkKind
from tests.conftest import SetSettings
from worker import supervisor
from worker.hanging import Hanging
from worker.lease import Lease, Wish
from worker.outcomes import Failed
from worker.standby import Child
from worker.supervisor import Finished, attend

SAY = """
import os, signal, sys, time
def say(line): os.write(int(os.environ["FINETUNED_EVENTS_FD"]), line.encode() + b"\\n")
def step(number):
    say('{"type":"metrics","step":%d,"total_steps":9,"epoch":0,"loss":1,"learning_rate":1,"grad_norm":1,"tokens":1,'
        '"tokens_per_second":1,"seconds":1,"memory_bytes":1}' % number)
say('{"type":"phase","phase":"training","total_steps":9}')
"""
LEASE = Lease(Claim(0, WorkKind.TRAIN, "nobody's", 1, 0))
"""Not entered: nothing is wished."""


@contextmanager
def child(script: str) -> Iterator[Child]:
    """A process that speaks as a trainer does."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SAY + script],
        env=os.environ | {"FINETUNED_EVENTS_FD": str(write_end)},
        pass_fds=[write_end],
        start_new_session=True,
    )
    os.close(write_end)
    made = Child(process, read_end)
    try:
        yield made
    finally:
        made.close()


def ending(script: str, patience: float) -> object:
    with child(script) as made:
        return attend(made, LEASE, lambda _: None, Hanging(patience))


@pytest.mark.fault(7)
@pytest.mark.parametrize("deaf", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["", "deaf"])
def test_a_trainer_that_says_nothing_any_more_is_stopped(set_settings: SetSettings, deaf: str) -> None:
    set_settings(stop_grace=0.5)
    found = ending(f"{deaf}\nstep(1); time.sleep(60)", 1.0)
    assert isinstance(found, Failed)
    assert (found.code, found.retryable) == ("hung", True)


@pytest.mark.fault(29)
def test_a_cancel_that_nobody_hears_is_over_sooner_than_a_save_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CANCEL_GRACE", 0.5)
    with child("signal.signal(signal.SIGINT, signal.SIG_IGN); step(1); time.sleep(60)") as made:
        while b"metrics" not in os.read(made.events, 65536):
            pass
        stop = supervisor.Stop(made)
        began = time.monotonic()
        while made.process.poll() is None:
            stop.follow(Wish.CANCEL)
            time.sleep(0.05)
    assert (stop.killed, made.process.returncode) == (True, -signal.SIGKILL)
    assert 0.5 <= time.monotonic() - began < 20  # not the 30 s of a pause


def test_a_step_may_take_as_long_as_the_others_make_likely() -> None:
    slow = 'for n in range(4): step(n); time.sleep(0.2)\ntime.sleep(1.6); step(5); say(\'{"type":"done"}\')'
    assert isinstance(ending(slow, 1.0), Finished)


def test_an_evaluation_that_gets_on_is_waited_for() -> None:
    long = 'step(1)\nfor _ in range(9): say(\'{"type":"evaluating"}\'); time.sleep(0.2)\nsay(\'{"type":"done"}\')'
    assert isinstance(ending(long, 1.0), Finished)


def test_loading_may_be_silent_for_longer() -> None:
    loading = 'say(\'{"type":"phase","phase":"loading"}\'); time.sleep(1.5); say(\'{"type":"done"}\')'
    assert isinstance(ending(loading, 0.5), Finished)


@pytest.mark.fault(4)
def test_a_signal_of_nobody_s_is_a_loss() -> None:
    found = ending("os.kill(os.getpid(), signal.SIGSEGV)", 60)
    assert isinstance(found, Failed)
    assert (found.code, found.message) == ("worker_lost", "The trainer was killed by SIGSEGV without a word.")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 64 MiB, where this user may make one."""
    roots = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    group = next((root for root in roots if (root / "cgroup.procs").exists()), roots[1]) / f"finetuned-{os.getpid()}"
    limit = "memory.limit_in_bytes" if group.parent.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(64 * 1024**2))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"needs a control group of its own: {error}")
    yield group
    group.rmdir()


@pytest.mark.fault(5)
def test_what_the_kernel_kills_for_memory_is_said_to_be_that(small_group: Path) -> None:
    script = f"open('{small_group / 'cgroup.procs'}', 'w').write(str(os.getpid())); b'x' * 10**9"
    found = ending(script, 60)
    assert isinstance(found, Failed)
    assert (found.code, found.retryable) == ("out_of_host_memory", True)


def test_a_kill_without_want_of_memory_is_not() -> None:
    found = ending(f"os.kill(os.getpid(), {int(signal.SIGKILL)})", 60)
    assert isinstance(found, Failed)
    assert found.code == "worker_lost"
