"""Time by arithmetic, corrected by earlier jobs on such a device; how wide the interval is, and what it rests on."""

import math
import random
from typing import Any

import pytest

from app.planning.duration import PRIOR_FACTOR, Measured, Work, _student, by_arithmetic, duration, work_of


def work(flops: float, micro_steps: float = 100) -> Work:
    return Work(flops, micro_steps, moved_bytes=1e9)


def test_the_arithmetic_is_six_operations_a_parameter_and_token_and_four_for_an_adapter() -> None:
    common: dict[str, Any] = {"tokens": 10.0, "micro_steps": 1.0, "passes_of_reference": 0, "moved_bytes": 0.0}
    assert work_of(params=100, trained=100, checkpointing=False, **common).flops == 6 * 100 * 10
    assert work_of(params=100, trained=0, checkpointing=False, **common).flops == 4 * 100 * 10
    assert work_of(params=100, trained=0, checkpointing=True, **common).flops == 6 * 100 * 10
    with_reference = {**common, "passes_of_reference": 1}
    assert work_of(params=100, trained=0, checkpointing=False, **with_reference).flops == 6 * 100 * 10


def test_without_earlier_jobs_the_class_alone_speaks_and_the_interval_is_wide() -> None:
    found = duration(work(1e13), "cpu", None, [])
    assert found.high / found.low == pytest.approx(PRIOR_FACTOR**2)
    assert "no job has been trained" in found.basis


def test_each_class_has_a_speed_of_its_own() -> None:
    heavy = work(1e17)
    by_size = [by_arithmetic(heavy, "cuda", size) for size in (16, 24, 48, 80)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_arithmetic(heavy, "cuda", 8) == by_size[0]
    assert by_arithmetic(heavy, "cuda", 32) == by_size[1]


def test_a_device_that_is_slower_than_its_class_is_learnt_from_its_jobs() -> None:
    earlier = [Measured(work(flops), 3 * by_arithmetic(work(flops), "cpu", None)) for flops in (1e12, 2e12, 3e12)]
    found = duration(work(2.5e12), "cpu", None, earlier)
    truth = 3 * by_arithmetic(work(2.5e12), "cpu", None)
    assert found.low < truth < found.high
    assert found.high / found.low < PRIOR_FACTOR**2 / 2
    assert found.basis == "3 earlier jobs on such a device"


def test_jobs_like_it_count_more() -> None:
    small = [Measured(work(1e10), 5 * by_arithmetic(work(1e10), "cpu", None))] * 3
    large = [Measured(work(1e15), by_arithmetic(work(1e15), "cpu", None))] * 3
    factor = {
        flops: duration(work(flops), "cpu", None, [*small, *large]).seconds / by_arithmetic(work(flops), "cpu", None)
        for flops in (1e10, 1e15)
    }
    assert factor[1e10] > 3.5
    assert factor[1e15] < 1.2


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.3])
def test_the_interval_holds_nine_of_ten_whatever_the_speed_and_its_spread(spread: float) -> None:
    """Devices of any speed within the prior's range, whose jobs scatter by so much (of the logarithm)."""
    drawn = random.Random(0)  # noqa: S311  no secret
    held = tried = 0
    for _ in range(200):
        speed = drawn.uniform(-math.log(3), math.log(3))

        def seconds(of: Work, speed: float = speed) -> float:
            return by_arithmetic(of, "cpu", None) * math.exp(speed + drawn.gauss(0, spread))

        earlier = [Measured(of, seconds(of)) for of in (work(10 ** drawn.uniform(12, 14)) for _ in range(3))]
        for of in (work(10 ** drawn.uniform(12, 14)) for _ in range(5)):
            found = duration(of, "cpu", None, earlier)
            held += found.low <= seconds(of) <= found.high
            tried += 1
    assert held / tried >= 0.85


@pytest.mark.parametrize(("degrees", "tabled"), [(2, 2.920), (3, 2.353), (5, 2.015), (10, 1.812), (30, 1.697)])
def test_few_jobs_make_a_wider_interval_by_students_t(degrees: int, tabled: float) -> None:
    assert _student(0.95, degrees) == pytest.approx(tabled, rel=0.02)
