"""A trainer, by hand or as a worker's child: `python -m worker.training WORKDIR`, or `--wait`."""

import os
from pathlib import Path

from worker.messages import AnyMessage
from worker.training.child import Report, StopRequest, Work, is_told, leave, run


def load() -> Work:
    """Import what training takes; what is loaded late is imported ahead where there is time."""
    set_environment()
    from worker.training import preload

    preload.import_bitsandbytes()
    from worker.training.train import make_ready, train

    if not is_told():
        preload.warm_up()

    def work(work_dir: Path, report: Report, stop: StopRequest) -> AnyMessage:
        make_ready(work_dir, report)
        return train(work_dir, report, stop)

    return work


def set_environment() -> None:
    """What the libraries read once, when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # numpy's pool: a thread a core from its import on, and training never uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if __name__ == "__main__":
    leave(run(load))
