"""What device a slot has, without torch: its name, its memory, and the worker class that follows."""

import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Device:
    """A slot's device."""

    kind: str
    """`cpu` or `cuda`."""
    name: str
    memory_bytes: int
    uuid: str | None = None
    """Of a GPU: what `CUDA_VISIBLE_DEVICES` takes."""

    @classmethod
    def cpu(cls) -> Self:
        """This machine's processor and its memory."""
        return cls("cpu", _cpu_name(), psutil.virtual_memory().total)

    @property
    def worker_class(self) -> str:
        """`cpu`, or `gpu-<GB>`: the memory in GB as it is sold, so 24 for a card that shows 23.7 GiB."""
        if self.kind == "cpu":
            return "cpu"
        return f"gpu-{round(self.memory_bytes / 1024**3)}"

    def as_json(self) -> dict[str, Any]:
        """As attempts and workers show it."""
        return asdict(self)

    def environment(self) -> dict[str, str]:
        """What makes a child process see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid or ""}


def device_of(slot: int) -> Device:
    """The GPU of that index, or the CPU where this machine has no GPU at all.

    Raises `LookupError` for a slot beyond the last GPU: two trainers on one GPU would be out of memory together.
    """
    gpus = _gpus()
    if not gpus:
        return Device.cpu()
    if slot >= len(gpus):
        raise LookupError(f"Slot {slot} has no GPU: this machine has {len(gpus)}.")
    return gpus[slot]


def _gpus() -> list[Device]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no GPU
        return []
    try:
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Device:
    memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Device("cuda", str(pynvml.nvmlDeviceGetName(handle)), memory, str(pynvml.nvmlDeviceGetUUID(handle)))


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    found = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()
