"""What this machine trains on: the device, and the precision that is fast there, found by trying."""

import ctypes
import importlib.util
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>

PROBE_SIZE = 384
"""Rows and columns of the probe's matrices: some 50 milliseconds where bf16 is emulated."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device and how to use it."""

    kind: Literal["cpu", "cuda"]
    name: str
    precision: Precision
    attention: Literal["sdpa", "flash_attention_2"]

    @property
    def compute_dtype(self) -> torch.dtype:
        """What products of matrices are computed in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def kind() -> Literal["cpu", "cuda"]:
    """Which kind `find` will find; cheap."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find() -> Device:
    """The GPU that this process can see, else the CPU with all its cores."""
    if kind() == "cuda":
        precision = _precision(_gpu_precision)
        return Device("cuda", torch.cuda.get_device_name(), precision, _attention(precision))
    torch.set_num_threads(int(os.environ.get("FINETUNED_TORCH_THREADS", _cores())))
    _keep_freed_memory()
    return Device("cpu", "cpu", _precision(_cpu_precision), "sdpa")


def peak_memory_bytes(device: Device) -> int:
    """Most memory in use so far: allocated by torch on a GPU, resident in this process on a CPU."""
    if device.kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    # Not getrusage's maximum: across an exec, that one remembers what the parent had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024


def forget_peak(device: Device) -> None:
    """Have the peak begin again at what is in use now, where the kernel lets a process ask for that."""
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step, instead of handing it back to the kernel, page by page.

    Tensors of many megabytes come and go at each step; the page faults cost a quarter of the speed (135 against 104
    tokens/s: QLoRA on SmolLM2-135M, two cores). The peak is the same.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's own
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _cores() -> int:
    """What this process may use: the processors it may run on, or fewer where its container has a quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):  # no cgroup of version 2
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _precision(probe: Callable[[], Precision]) -> Precision:
    """What `FINETUNED_PRECISION` says, else what the probe finds."""
    match os.environ.get("FINETUNED_PRECISION"):
        case "bf16":
            return "bf16"
        case "fp32":
            return "fp32"
        case _:
            return probe()


def _gpu_precision() -> Precision:
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _cpu_precision() -> Precision:
    """bf16 is 4 × faster than fp32 with AVX512-BF16 and 4 × slower with AVX2 alone: a try tells, no flag does."""
    fp32 = _seconds(torch.float32)
    return "bf16" if _seconds(torch.bfloat16, hopeless=10 * fp32) < fp32 else "fp32"


def _seconds(dtype: torch.dtype, *, hopeless: float = math.inf) -> float:
    """The best of five products, the first of which are warm-up in effect; of two, where they are hopeless."""
    left = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    best = float("inf")
    for number in range(1, 6):
        begun = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - begun)
        if number > 1 and best > hopeless:
            break
    return best


def _attention(precision: Precision) -> Literal["sdpa", "flash_attention_2"]:
    """FlashAttention where the package and the GPU (Ampere or newer) allow; it knows 16-bit numbers only."""
    allowed = precision == "bf16" and torch.cuda.get_device_capability() >= (8, 0)
    return "flash_attention_2" if allowed and importlib.util.find_spec("flash_attn") else "sdpa"
