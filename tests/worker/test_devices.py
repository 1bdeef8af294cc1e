"""Which class a device makes of its worker."""

import pytest

from worker.devices import Device, Meter, device_of

MIB = 1024**2


@pytest.mark.parametrize(
    ("name", "mebibytes", "worker_class"),
    [
        ("Tesla T4", 15_360, "gpu-16"),
        ("NVIDIA L4", 23_034, "gpu-24"),
        ("NVIDIA GeForce RTX 4090", 24_564, "gpu-24"),
        ("NVIDIA A100-SXM4-40GB", 40_960, "gpu-40"),
        ("NVIDIA L40S", 46_068, "gpu-48"),
        ("NVIDIA H100 80GB HBM3", 81_559, "gpu-80"),
        ("NVIDIA H200", 143_771, "gpu-141"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9_856, "gpu-10"),
    ],
)
def test_a_gpu_has_the_class_of_the_size_it_is_sold_by(name: str, mebibytes: int, worker_class: str) -> None:
    assert Device("cuda", name, mebibytes * MIB, "GPU-1").worker_class == worker_class


def test_a_machine_without_a_gpu_is_of_class_cpu_and_hides_gpus_from_its_trainers() -> None:
    device = Device.cpu()

    assert device.worker_class == "cpu"
    assert device.memory_bytes > 0
    assert device.environment() == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_meter_tells_what_the_machine_and_the_process_use() -> None:
    found = Meter(Device.cpu()).read()
    assert 0 < found["process_memory_bytes"] < found["memory_used_bytes"] < found["memory_bytes"]
    assert 0 <= found["utilization"] <= 1
    assert "temperature_celsius" not in found


@pytest.mark.gpu
def test_a_meter_tells_what_a_gpu_uses() -> None:
    found = Meter(device_of(0)).read()
    assert 0 < found["memory_used_bytes"] < found["memory_bytes"] == device_of(0).memory_bytes
    assert 0 <= found["utilization"] <= 1
    assert 0 < found["temperature_celsius"] < 120


def test_a_gpu_that_is_lost_is_no_reason_to_fall_silent() -> None:
    meter = Meter(Device("cuda", "gone", 1, "GPU-none"))
    assert set(meter.read()) == {"process_memory_bytes"}
    assert meter.memory() is None
