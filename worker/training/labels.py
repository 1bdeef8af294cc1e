"""From rows to token ids and labels: which tokens the model shall learn to say, and which it only reads.

Trained are the assistant's turns and the token that ends each of them, and nothing else; `train_on: all` trains every
token. Where a turn begins and ends is read off the template itself: the text of the conversation up to a turn is a
prefix of the text with it, and the difference is the turn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.files.formats import ChatRow, PromptRow, Row

IGNORED = -100
"""The label of a token that is not trained; what torch's cross entropy skips."""
BATCH_ROWS = 256
"""Rows tokenised in one call: enough to keep the tokenizer's threads busy."""

TrainOn = Literal["completion", "all"]


class RowUnusable(ValueError):
    """A row cannot be labelled; the message says which line and why."""


class TemplateUnusable(Exception):
    """The base's chat template cannot show where an answer ends."""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One example as the model sees it."""

    line: int
    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`: the token's id where it is trained, else -100."""


def labelled(
    rows: Iterable[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Iterator[LabelledRow]:
    """Rows of a file with their line numbers → tokens and labels. Raises `RowUnusable` or `TemplateUnusable`."""
    for batch in _in_batches(rows):
        chats = [(line, row) for line, row in batch if isinstance(row, ChatRow)]
        prompts = [(line, row) for line, row in batch if isinstance(row, PromptRow)]
        if chats:
            yield from _labelled_chats(chats, tokenizer, train_on)
        if prompts:
            yield from _labelled_prompts(prompts, tokenizer, train_on)


def _labelled_prompts(
    rows: list[tuple[int, PromptRow]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Iterator[LabelledRow]:
    """As TRL does: the end-of-sequence token behind the completion, prompt and completion tokenised together."""
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise TemplateUnusable("The base's tokenizer has no end-of-sequence token, so no answer would ever end.")
    wholes = [row.prompt + row.completion + ("" if row.completion.endswith(eos) else eos) for _, row in rows]
    prompt_ids = tokenizer([row.prompt for _, row in rows])["input_ids"]
    whole_ids = tokenizer(wholes)["input_ids"]
    for (line, _), prompt, whole in zip(rows, prompt_ids, whole_ids, strict=True):
        start = 0 if train_on == "all" else _shared(prompt, whole)
        yield LabelledRow(line, whole, [IGNORED] * start + whole[start:])


def _labelled_chats(
    rows: list[tuple[int, ChatRow]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Iterator[LabelledRow]:
    rendered = [_rendered(line, row, tokenizer, train_on) for line, row in rows]
    encoded = tokenizer(
        [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=train_on != "all"
    )
    for index, ((line, _), (text, turns)) in enumerate(zip(rows, rendered, strict=True)):
        ids = encoded["input_ids"][index]
        if train_on == "all":
            yield LabelledRow(line, ids, list(ids))
            continue
        yield LabelledRow(line, ids, _labels(line, ids, encoded["offset_mapping"][index], turns, text, tokenizer))


def _rendered(
    line: int, row: ChatRow, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation's text, and where in it each trained turn begins and ends, in characters."""
    messages = [message.for_template() for message in row.messages]
    if "developer" not in str(tokenizer.chat_template):
        messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    try:
        whole = _render(tokenizer, messages, row)
        turns = (
            []
            if train_on == "all"
            else [
                _turn(line, whole, messages, index, row, tokenizer)
                for index, message in enumerate(row.messages)
                if message.trained
            ]
        )
    except TemplateError as error:
        raise RowUnusable(f"line {line}: the base's chat template refuses it: {error}") from error
    return whole, turns


def _turn(
    line: int,
    whole: str,
    messages: list[dict[str, Any]],
    index: int,
    row: ChatRow,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int]:
    through = whole if index == len(messages) - 1 else _render(tokenizer, messages[: index + 1], row)
    before = _render(tokenizer, messages[:index], row, add_generation_prompt=True) if index else ""
    if not whole.startswith(through):
        raise RowUnusable(
            f"line {line}: the base's chat template changes messages[{index}] once others follow it, so what the model"
            " would learn is not what it will see. Split the conversation, or give that message weight 0."
        )
    return _shared(before, through), len(through)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    row: ChatRow,
    *,
    add_generation_prompt: bool = False,
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tools=row.tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert isinstance(text, str)  # noqa: S101  what `tokenize=False` gives for one conversation
    return text


def _labels(
    line: int,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    turns: list[tuple[int, int]],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    labels = [IGNORED] * len(ids)
    ends = _special_ids(tokenizer)
    for start, end in turns:
        inside = [at for at, (first, last) in enumerate(offsets) if last > start and first < end]
        # What stands behind the end-of-turn token (ChatML's line break) is the template's, not the model's.
        while inside and ids[inside[-1]] not in ends and not text[slice(*offsets[inside[-1]])].strip():
            inside.pop()
        if not inside or ids[inside[-1]] not in ends:
            raise TemplateUnusable(
                f"line {line}: the base's chat template ends an answer without a special token, so the model would"
                " never learn to stop. Use a base with a chat template that ends its turns."
            )
        for at in inside:
            labels[at] = ids[at]
    return labels


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = (at for at, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _in_batches(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH_ROWS)):
        yield batch
