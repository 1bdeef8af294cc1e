"""What device a slot has, without torch: its name, its memory, and the worker class that follows."""

import logging
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pynvml

log = logging.getLogger(__name__)

SOLD_GIGABYTES = (2, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 141, 180, 288)


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
        """`cpu`, or `gpu-<GB>`: the memory in GB as it is sold."""
        return "cpu" if self.kind == "cpu" else f"gpu-{sold_gigabytes(self.memory_bytes)}"

    def as_json(self) -> dict[str, Any]:
        """As attempts and workers show it."""
        return asdict(self)

    def environment(self) -> dict[str, str]:
        """What makes a child process see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid or ""}


@dataclass(frozen=True, slots=True)
class Memory:
    """What is in use of a GPU's memory."""

    used_bytes: int
    """Without what the driver reserves, where it tells the two apart."""
    by_pid: dict[int, int | None]
    """Of the processes that compute there, by their pids outside of containers, as far as the GPU tells."""


ReadMemory = Callable[[], Memory | None]
"""None: not a GPU, or one that does not tell."""


class Meter:
    """What a slot's device is used for, read with each heartbeat; kept by one thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._gpu: Any = None
        self._process = psutil.Process()
        psutil.cpu_percent()  # the next one is since this one

    def read(self) -> dict[str, float]:
        """Bytes of memory, a share of time, degrees Celsius; what the device does not tell is absent.

        `process_memory_bytes` is resident memory of this process and of the trainers that it has started.
        """
        found: dict[str, float] = {"process_memory_bytes": self._resident()}
        if self._device.uuid is None:
            memory = psutil.virtual_memory()
            found |= {
                "memory_bytes": memory.total,
                "memory_used_bytes": memory.total - memory.available,
                "utilization": psutil.cpu_percent() / 100,
            }
            return found
        try:
            gpu = self._handle()
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            found |= {"memory_bytes": memory.total, "memory_used_bytes": memory.used}
            found["utilization"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
            found["temperature_celsius"] = pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)
        except pynvml.NVMLError as error:  # a partition of a GPU tells less, and a GPU that is lost nothing
            log.debug("the GPU does not tell how it is used: %s", error)
        return found

    def memory(self) -> Memory | None:
        """What is in use of the GPU's memory, and by whom; see `ReadMemory`."""
        if self._device.uuid is None:
            return None
        try:
            gpu = self._handle()
            try:
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used
            except pynvml.NVMLError_FunctionNotFound:  # a driver before 510, which counts nothing reserved as used
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu).used
            found = Memory(int(used), {})
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu):
                found.by_pid[process.pid] = process.usedGpuMemory
        except pynvml.NVMLError as error:
            log.debug("the GPU does not tell who uses it: %s", error)
            return None
        return found

    def _handle(self) -> Any:
        if self._gpu is None:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(self._device.uuid)
        return self._gpu

    def _resident(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.Error):  # it has ended meanwhile
                total += process.memory_info().rss
        return total


def sold_gigabytes(memory_bytes: int) -> int:
    """The size by which a GPU is sold, of what NVML shows: as much in decimal GB, or some 7 % more.

    An L4 shows 23,034 MiB (24.2 GB), an RTX 4090 24,564 MiB (25.8 GB), an H100 81,559 MiB (85.5 GB), a T4 15,360 MiB
    (16.1 GB). Of an unusual size it is the next usual one below, so that no job is promised memory that is not there.
    """
    gigabytes = memory_bytes / 1e9
    return max((size for size in SOLD_GIGABYTES if size <= gigabytes), default=max(1, int(gigabytes)))


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
