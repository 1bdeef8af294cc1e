"""What results are called, generation after generation."""

import pytest

from app.registry import names

JOB = "ftjob-0123456789abcdef01234567"


def child_of(model: str) -> str:
    return names.of_result(model, "My Team", None, job_id=JOB)


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("tiny", "tiny"),
        ("org/Name-7B", "Name-7B"),
        ("org/Name-7B@main", "Name-7B"),
        ("org/Name-7B@refs/pr/1", "Name-7B"),
        ("a:b", "a:b"),  # a folder may be called so
    ],
)
def test_results_of_all_generations_begin_with_the_base_that_came_first(model: str, base: str) -> None:
    name = f"ft:{base}:my-team::0123456789ab"
    assert child_of(model) == name
    assert child_of(name) == name
    assert child_of(names.of_checkpoint(name, 12)) == name
    assert child_of(child_of(child_of(model))) == name


def test_a_parent_from_before_that_rule_is_read_too() -> None:
    nested = "ft:ft:tiny:default:s:0a0a0a0a0a0a:default::0b0b0b0b0b0b"
    assert child_of(nested) == child_of(f"{nested}:ckpt-step-3") == "ft:tiny:my-team::0123456789ab"
    nested = "ft:ft:tiny:default:s:0a0a0a0a0a0a:ckpt-step-5:default::0b0b0b0b0b0b"
    assert child_of(nested) == "ft:tiny:my-team::0123456789ab"
