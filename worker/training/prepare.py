"""Prepares a job's files, by hand or as a worker's child: `python -m worker.training.prepare WORKDIR`."""

import os
import sys

from worker import messages
from worker.training.child import (
    StopNow,
    StopRequest,
    become_child,
    importing,
    is_told,
    leave,
    reporter,
    wait_for_a_core,
    work_dir_from,
)


def main() -> int:
    """The exit code: 0 when WORKDIR/prepared.json is complete."""
    become_child()
    stop, report = StopRequest(), reporter()
    try:
        wait_for_a_core()
        do_without_torch()
        with importing():
            # Not at the top: these imports take a second, in which a signal is answered and a dead worker noticed.
            from worker.training import failures, preload
            from worker.training.tokenise import prepare

            if not is_told():
                preload.warm_up_preparing()
        work_dir = work_dir_from(sys.argv[1:])
        if work_dir is None:
            return 0
        try:
            prepare(work_dir, report)
        except Exception as error:  # noqa: BLE001  whatever it is, the worker is told in its own words
            report(failures.classify(error))
            return 1
        report(messages.Done())
    except StopNow:
        report(messages.Stopped(step=0))
    finally:
        stop.deferred = True
    return 0


def do_without_torch() -> None:
    """Have transformers find no torch: a tokenizer needs none, and its import takes longer than all the others."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would say in each log that torch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own mark for a module that is not there


if __name__ == "__main__":
    leave(main())
