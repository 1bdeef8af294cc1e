"""Counts what a training step would take, without weights and without a GPU: by hand or as a worker's child,
`python -m worker.training.dry_run WORKDIR`, or `--wait`.

WORKDIR has `job.json`, a spec with a number for every `auto`, as a plan's `resolved` and a job's are; the base's
`config.json`; and, for another device than a GPU, `device.json`: {"kind": "cuda" or "cpu", "precision": "bf16" or
"fp32"}. Where the model is an adapter that goes on training, there is a folder `parent`, which may be empty. The
answer is WORKDIR/dry_run.json: {"train": bytes by what they are, "by_layer": […], "evaluation": bytes}.
"""

import sys
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from app.jobs.spec import JobSpec
from app.planning.dry_runs import DryRun
from app.planning.fitting import PROCESS_BYTES
from app.planning.setups import Device
from worker import messages
from worker.messages import AnyMessage
from worker.training.child import Report, StopRequest, Work, is_told, leave, run

ON_A_GPU = Device("cuda", "bf16")


def load() -> Work:
    """Import what a step takes."""
    import torch

    from worker.training import preload

    preload.import_bitsandbytes()
    from worker.training import fake_step
    from worker.training.preparation import write_last

    if not is_told():
        preload.warm_up()
    torch.set_num_threads(1)  # nothing is computed

    def work(work_dir: Path, _: Report, __: StopRequest) -> AnyMessage:
        spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
        device = device_in(work_dir)
        try:
            found = fake_step.dry_run(work_dir, spec, device, goes_on=(work_dir / "parent").is_dir())
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  of a model that is out of the ordinary the libraries raise anything
            return messages.Failed(code="no_dry_run", message=f"{type(error).__name__}: {error}"[:1000])
        answer = found if device.kind == "cuda" else with_process(found)
        write_last(work_dir / "dry_run.json", TypeAdapter(DryRun).dump_json(answer, indent=2).decode())
        return messages.Done()

    return work


def device_in(work_dir: Path) -> Device:
    """As it is said there; else a GPU."""
    path = work_dir / "device.json"
    return TypeAdapter(Device).validate_json(path.read_text()) if path.exists() else ON_A_GPU


def with_process(found: DryRun) -> DryRun:
    """On a CPU Python and the libraries lie in the same memory, as the formula has it."""
    train = replace(found.train, context=float(PROCESS_BYTES))
    return DryRun(train, found.by_layer, found.evaluation + PROCESS_BYTES)


if __name__ == "__main__":
    if sys.argv[1:] in (["--help"], ["-h"]):
        sys.stdout.write(str(__doc__))
        sys.exit()
    leave(run(load))
