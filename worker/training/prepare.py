"""Prepares a job's files, reports on a file, or shows some prepared rows, by what is in WORKDIR: by hand or as a
worker's child, `python -m worker.training.prepare WORKDIR`, or `--wait`.
"""

import os
import sys
from pathlib import Path

from worker import messages
from worker.messages import AnyMessage
from worker.training.child import Report, StopRequest, Work, is_told, leave, run


def load() -> Work:
    """Import what preparing takes; what is loaded late is imported ahead where there is time."""
    do_without_torch()
    from worker.training import preload, preparation, preview

    if not is_told():
        preload.warm_up_preparing()

    def work(work_dir: Path, report: Report, _: StopRequest) -> AnyMessage:
        if (work_dir / "shown.json").exists():
            preview.show(work_dir)
        elif (work_dir / "job.json").exists():
            preparation.prepare(work_dir, report)
        else:
            preparation.answer(work_dir, report)
        return messages.Done()

    return work


def do_without_torch() -> None:
    """Have transformers find no torch: a tokenizer needs none, and its import takes longer than all the others."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would say in each log that torch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own mark for a module that is not there


if __name__ == "__main__":
    leave(run(load))
