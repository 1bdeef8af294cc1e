"""Becomes another program that dies with its parent; as an ordinary user where that program refuses root.

`python -S -E launch.py --parent PID --death SIGNAL [--user-namespace] -- PROGRAM ARGUMENTS...`
Standard library only, so that it costs some 20 ms.
"""

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
ORDINARY_ID = 1000
EXIT_NO_NAMESPACE = 97
"""Said to whoever started us: user namespaces are forbidden here."""


def main() -> None:
    """Never returns: the process becomes the program."""
    arguments = _arguments()
    if arguments.user_namespace:
        leave_root()
    # After leaving root, since a change of credentials forgets it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, arguments.death)
    if os.getppid() != arguments.parent:  # it died before the line above
        sys.exit(1)
    os.execv(arguments.program[0], arguments.program)  # noqa: S606  no shell is wanted


def leave_root() -> None:
    """Be an ordinary user to this process and its children, and still root to the files outside."""
    try:
        _unshare_user()
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{ORDINARY_ID} 0 1")
        Path("/proc/self/gid_map").write_text(f"{ORDINARY_ID} 0 1")
    except OSError as error:  # some containers allow the namespace and forbid the map
        sys.stderr.write(f"no user namespace: {error}\n")
        sys.exit(EXIT_NO_NAMESPACE)


def _unshare_user() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death", type=lambda name: signal.Signals[name], required=True)
    parser.add_argument("--user-namespace", action="store_true")
    parser.add_argument("program", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
