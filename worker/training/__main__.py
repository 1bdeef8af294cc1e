"""A trainer, by hand or as a worker's child: `python -m worker.training WORKDIR`, or `--wait`."""

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
    """The exit code: 0 when WORKDIR/result is complete, or the trainer was told to stop and did."""
    become_child()
    stop, report = StopRequest(), reporter()
    try:
        wait_for_a_core()
        set_environment()
        with importing():
            # Not at the top: these imports take seconds, in which a signal is answered and a dead worker noticed.
            from worker.training import failures, preload
            from worker.training.train import make_ready, train

            if not is_told():
                preload.warm_up()
        work_dir = work_dir_from(sys.argv[1:])
        if work_dir is None:
            return 0
        try:
            make_ready(work_dir, report)
            outcome = train(work_dir, report, stop)
        except Exception as error:  # noqa: BLE001  whatever it is, the worker is told in its own words
            report(failures.classify(error))
            return 1
        stop.deferred = True  # what is done is done
        report(outcome)
    except StopNow:
        report(messages.Stopped(step=0))
    finally:
        stop.deferred = True
    return 0


def set_environment() -> None:
    """What the libraries read once, when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # numpy's pool: a thread a core from its import on, and training never uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if __name__ == "__main__":
    leave(main())
