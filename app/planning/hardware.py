"""Devices that a job could be trained on: those of this service, and common GPUs to speak of beside them."""

from dataclasses import dataclass

from app.planning.setups import Device

GIB = 1024**3
GPUS = {
    "16 GB": 15.0,
    "24 GB": 22.5,
    "40 GB": 40.0,
    "48 GB": 45.0,
    "80 GB": 79.6,
    "141 GB": 140.4,
}
"""GiB that the driver reports of the smallest card of a class: T4, L4, A100-40, L40S, H100, H200."""
ON_GPU = Device("cuda", "bf16")


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device that a job could get."""

    name: str
    """Of a worker class, or of a size of GPU."""
    device: Device
    room: float
    """Bytes."""
    gigabytes: int | None = None
    """That a GPU is sold with."""
    is_here: bool = False
    """Whether this service has one."""
    correction: float = 1.0
    """What earlier jobs there took at their peak, over what the formula said of them."""


COMMON = tuple(Hardware(name, ON_GPU, gib * GIB, int(name.split()[0])) for name, gib in GPUS.items())
"""GPUs to speak of where nobody says which there are."""
