"""Grades a sample: pure, and an answer whatever the sample is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from app.graders import formula, metrics, templates
from app.graders.failures import Flag, NotGraded
from app.graders.spec import MultiGrader, StringCheck, TextSimilarity


@dataclass(frozen=True, slots=True)
class Grade:
    """The reward, and of a multi grader those of its parts; 0 where something went wrong, with what it was."""

    reward: float
    sub_rewards: dict[str, float] = field(default_factory=dict)
    flags: frozenset[Flag] = frozenset()
    message: str | None = None


def grade(grader: StringCheck | TextSimilarity | MultiGrader, sample: str, item: Mapping[str, Any]) -> Grade:
    """What a grader makes of a model's answer to an item."""
    try:
        match grader:
            case StringCheck():
                return Grade(_checked(grader, sample, item))
            case TextSimilarity():
                text, reference = _texts(grader, sample, item)
                return Grade(metrics.similarity(grader.evaluation_metric, text, reference))
            case MultiGrader():
                return _combined(grader, sample, item)
            case _:
                assert_never(grader)
    except NotGraded as failure:
        return Grade(0.0, flags=frozenset(failure.flags), message=failure.message)


def _checked(grader: StringCheck, sample: str, item: Mapping[str, Any]) -> float:
    text, reference = _texts(grader, sample, item)
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.casefold() in text.casefold())
        case _:
            assert_never(grader.operation)


def _combined(grader: MultiGrader, sample: str, item: Mapping[str, Any]) -> Grade:
    """A part that could not be graded takes the whole with it: no formula says what its 0 would mean."""
    parts = {key: grade(part, sample, item) for key, part in grader.graders.items()}
    rewards = {key: part.reward for key, part in parts.items()}
    failed = {key: part for key, part in parts.items() if part.flags}
    if failed:
        flags = frozenset[Flag]().union(*(part.flags for part in failed.values()))
        return Grade(0.0, rewards, flags, " ".join(f"{key}: {part.message}" for key, part in failed.items()))
    try:
        return Grade(formula.calculate(grader.calculate_output, rewards), rewards)
    except NotGraded as failure:
        return Grade(0.0, rewards, frozenset(failure.flags), failure.message)


def _texts(grader: StringCheck | TextSimilarity, sample: str, item: Mapping[str, Any]) -> tuple[str, str]:
    text, reference = (templates.fill(text, item=item, sample=sample) for text in (grader.input, grader.reference))
    return text, reference
