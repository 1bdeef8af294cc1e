"""What answers are worth: the spec's grader as the reward of TRL's trainer, and what a job's events say of it."""

# ruff: noqa: ARG002  transformers calls these with its own arguments, needed or not

import json
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.graders.run import Grade, grade
from app.graders.spec import MultiGrader, StringCheck, TextSimilarity
from worker import messages
from worker.training.child import Report

SHOWN_CHARACTERS = 200
"""Of a prompt's end and of an answer's beginning, in an event."""
EQUAL_FOR = 10
"""Steps in which no two answers to a prompt had different rewards, after which that is said."""


class Grading:
    """A reward function as TRL calls it: for each answer to a prompt the grade of it and its row's `item`."""

    __name__ = "grader"  # what TRL calls its metrics

    def __init__(self, grader: StringCheck | TextSimilarity | MultiGrader, tokenizer: PreTrainedTokenizerBase) -> None:
        self._grader, self._tokenizer = grader, tokenizer
        self.ungraded = 0
        """Answers so far, training's and evaluations'."""
        self.why: str | None = None
        """The first of them could not be graded."""
        self._last: tuple[list[int], str, Grade] | None = None

    def __call__(
        self,
        prompts: Sequence[list[int]],
        completions: Sequence[str],
        item: Sequence[str],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Rewards, 0 where something could not be graded. `item`: JSON objects."""
        read = {text: json.loads(text) for text in set(item)}
        grades = [grade(self._grader, said, read[text]) for said, text in zip(completions, item, strict=True)]
        failed = [one for one in grades if one.flags]
        self.ungraded += len(failed)
        if failed and self.why is None:
            self.why = failed[0].message
        log_metric("ungraded", len(failed) / len(grades))
        self._last = (prompts[0], completions[0], grades[0])
        return [one.reward for one in grades]

    def example(self) -> str:
        """One of the last answers, in words."""
        assert self._last is not None  # noqa: S101  asked after a step
        prompt, said, found = self._last
        asked = str(self._tokenizer.decode(prompt, skip_special_tokens=True))
        why = f" ({found.message})" if found.message else ""
        return f"{_end(asked)} → {_beginning(said)}: reward {found.reward:.4g}{why}"


class Answers(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Says what is generated, and where nothing can be learnt from it."""

    def __init__(self, report: Report, grading: Grading) -> None:
        self._report, self._grading = report, grading
        self._told_of_failures = self._told_of_equals = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """An answer at steps 1, 2, 4, 8 and so on; a warning once."""
        if "loss" not in logs:
            return
        step = state.global_step
        if step & (step - 1) == 0:
            self._report(messages.Notice("info", f"Step {step}: an answer: {self._grading.example()}"))
        if self._grading.why is not None and not self._told_of_failures:
            self._told_of_failures = True
            said = f"Step {step}: answers cannot be graded, and have a reward of 0: {self._grading.why}"
            self._report(messages.Notice("warn", said))
        equal = [entry["frac_reward_zero_std"] == 1.0 for entry in state.log_history if "frac_reward_zero_std" in entry]
        last = equal[-EQUAL_FOR:]
        if all(last) and not self._told_of_equals and (len(last) == EQUAL_FOR or step == state.max_steps):
            self._told_of_equals = True
            said = (
                f"In {len(last)} steps up to step {step} all answers to a prompt had one reward, so nothing was learnt"
                " from them. Take easier or harder prompts, a grader that tells more than right from wrong, or a higher"
                " num_generations."
            )
            self._report(messages.Notice("warn", said))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """How many answers could not be graded."""
        if self._grading.ungraded:
            said = f"{self._grading.ungraded} answers could not be graded, and had a reward of 0"
            self._report(messages.Notice("warn", said))


def _beginning(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…", ensure_ascii=False)


def _end(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN_CHARACTERS else "…" + text[-SHOWN_CHARACTERS:], ensure_ascii=False)
