"""Programs that die with their parent, and one that may not be root."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.cli import launch
from tests.running import wait_for

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to leave root")
LAUNCHER = [sys.executable, "-S", "-E", launch.__file__]


def launched(*program: str, parent: int | None = None, options: tuple[str, ...] = ()) -> list[str]:
    return [*LAUNCHER, "--parent", str(parent or os.getpid()), "--death", "SIGKILL", *options, "--", *program]


@pytest.mark.parametrize("options", [(), pytest.param(("--user-namespace",), marks=AS_ROOT)])
def test_a_program_dies_with_its_parent(options: tuple[str, ...]) -> None:
    source = f"""
import os, subprocess, sys, time
command = {[*LAUNCHER, "--death", "SIGKILL", *options]!r} + ["--parent", str(os.getpid()), "--", "/bin/sleep", "60"]
print(subprocess.Popen(command).pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_for(lambda: child.name() == "sleep")
        parent.kill()

    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)


def test_a_program_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(launched("/bin/touch", str(tmp_path / "started"), parent=1), check=False)

    assert done.returncode == 1
    assert not (tmp_path / "started").exists()


@AS_ROOT
def test_a_program_that_refuses_root_sees_an_ordinary_user_and_its_files_are_roots(tmp_path: Path) -> None:
    touch = launched("/bin/sh", "-c", f"id -u; id -g; touch {tmp_path}/made", options=("--user-namespace",))
    done = subprocess.run(touch, check=True, capture_output=True, text=True)

    assert done.stdout.split() == ["1000", "1000"]
    assert (tmp_path / "made").stat().st_uid == 0


@AS_ROOT
def test_it_says_so_where_user_namespaces_are_forbidden() -> None:
    forbidden = ["/usr/bin/unshare", "--user", "--map-root-user", "/bin/sh", "-c"]
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" "$@" --parent $$ --user-namespace -- /bin/true'
    # The limit is that of the new namespace only; exec keeps the shell's pid, so its parent is this process.
    script = script.replace("$$", str(os.getpid()))
    done = subprocess.run(
        [*forbidden, script, *LAUNCHER, "--death", "SIGKILL"], check=False, capture_output=True, text=True
    )

    assert done.returncode == launch.EXIT_NO_NAMESPACE
    assert "no user namespace" in done.stderr


def test_the_signal_of_a_parents_death_can_be_chosen(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    # A shell may hear the signal only when its own child ends, so this program waits for it in one piece.
    program = f"""
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("waiting", flush=True)
pathlib.Path({str(heard)!r}).write_text(signal.Signals(signal.sigwait([signal.SIGINT])).name)
"""
    source = f"""
import os, subprocess, sys, time
command = {[*LAUNCHER, "--death", "SIGINT"]!r} + ["--parent", str(os.getpid()), "--", sys.executable, "-c", {program!r}]
subprocess.Popen(command)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"waiting\n"
        parent.send_signal(signal.SIGKILL)

    wait_for(lambda: heard.exists() and heard.read_text() == "SIGINT", 5)
