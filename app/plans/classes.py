"""The classes of workers that this service has: what hardware they are, and which of them a job may go to."""

from sqlalchemy.orm import Session

from app.planning.hardware import GIB, GPUS, ON_GPU, Hardware
from app.planning.setups import Device
from app.queue import CPU
from app.work import service as work_service

ON_CPU = Device("cpu", "fp32")
"""The more memory of the two ways in which a trainer may compute there."""

Classes = tuple[Hardware, ...]


def known(session: Session) -> Classes:
    """Those that were heard of within a day, so that a restart of all workers changes no decision."""
    return tuple(
        Hardware(
            queue,
            ON_CPU if device["kind"] == "cpu" else ON_GPU,
            float(device["memory_bytes"]),
            int(size) if (size := queue.removeprefix("gpu-")).isdigit() else None,
            is_here=True,
        )
        for queue, device in work_service.devices(session).items()
    )


def open_to(classes: Classes, gpu_memory_gb: int | None) -> Classes:
    """Those that such a job may go to: GPUs where there are any, of the size that is asked for."""
    gpus = tuple(one for one in classes if one.gigabytes and one.gigabytes >= (gpu_memory_gb or 0))
    return gpus or (classes if gpu_memory_gb is None else ())


def queue_for(classes: Classes, gpu_memory_gb: int | None) -> str:
    """The worker class for a training: the smallest GPU known that has the memory, `cpu` where there is no GPU.

    Memory that no known worker has is a queue of its own, which waits for such a worker.
    """
    sizes = [one.gigabytes for one in open_to(classes, gpu_memory_gb) if one.gigabytes]
    if sizes:
        return f"gpu-{min(sizes)}"
    return CPU if gpu_memory_gb is None else f"gpu-{gpu_memory_gb}"


def of_queue(classes: Classes, queue: str) -> Classes:
    """What a worker of that class has; of a class that nobody has heard of, what its name says."""
    named = tuple(one for one in classes if one.name == queue)
    return named or of_sizes([int(size) for size in [queue.removeprefix("gpu-")] if size.isdigit()])


def of_sizes(gpu_memory_gb: list[int]) -> Classes:
    """GPUs by the GB they are sold with."""
    return tuple(
        Hardware(f"{size} GB", ON_GPU, GPUS[f"{size} GB"] * GIB if f"{size} GB" in GPUS else size * 1e9)
        for size in sorted(set(gpu_memory_gb))
    )
