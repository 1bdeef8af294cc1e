"""What this machine trains on, found by trying."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.training import device

ROOT = Path(__file__).parents[3]


def test_the_environment_overrules_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("bf16", "fp32"):
        monkeypatch.setenv("FINETUNED_PRECISION", precision)
        assert device.find().precision == precision


def test_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNED_TORCH_THREADS", "2")
    device.find()
    assert torch.get_num_threads() == 2


@pytest.mark.skipif("avx512_bf16" not in Path("/proc/cpuinfo").read_text(), reason="needs a CPU that has bf16 to hide")
@pytest.mark.parametrize(("isa", "precision"), [("AVX512_CORE_BF16", "bf16"), ("AVX2", "fp32")])
def test_bf16_is_chosen_where_it_is_fast(isa: str, precision: str) -> None:
    code = "from worker.training import device; print(device.find().precision)"
    environment = {name: value for name, value in os.environ.items() if name != "FINETUNED_PRECISION"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "ONEDNN_MAX_CPU_ISA": isa, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == precision


def test_peak_memory_is_this_process_own() -> None:
    machine = device.find()
    if machine.kind != "cpu":
        pytest.skip("the device counts its own memory")
    before = device.peak_memory_bytes(machine)
    grown = torch.ones(before // 4 + 2**26)  # float32: larger than everything so far
    assert device.peak_memory_bytes(machine) > before
    del grown


@pytest.mark.gpu
def test_a_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNED_PRECISION")
    machine = device.find()
    assert machine.kind == "cuda"
    assert machine.precision == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32")
