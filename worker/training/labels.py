"""From rows to token ids and labels: which tokens the model shall learn to say, and which it only reads.

Of a conversation the assistant's turns and the token that ends each of them are trained, and nothing else; of a prompt
with its completion all of the completion, as TRL does; with `train_on: all` every token. Where a turn begins and ends
is read off the template itself: the text of the conversation up to a turn is a prefix of the text with it, and the
difference is the turn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.files.rows import ChatMessage, ChatRow, PromptRow

IGNORED = -100
"""The label of a token that is not trained; what torch's cross entropy skips."""
BATCH_ROWS = 256
"""Rows tokenised in one call: enough to keep the tokenizer's threads busy, and of long rows so much text that their
tokens with offsets take some 100 MB."""
BATCH_CHARACTERS = 1_000_000

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
    rows: Iterable[tuple[int, ChatRow | PromptRow]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Iterator[LabelledRow]:
    """Rows of a file with their line numbers → tokens and labels. Raises `RowUnusable` or `TemplateUnusable`."""
    for batch in _in_batches(rows):
        chats = [(line, row) for line, row in batch if isinstance(row, ChatRow)]
        texts, conversations = list[tuple[int, str, str]](), list[tuple[int, str, str]]()
        for line, row in batch:
            match row:
                case PromptRow(prompt=str(prompt), completion=str(completion)):
                    texts.append(_with_end(line, prompt, completion, tokenizer))
                case PromptRow(prompt=list(prompt), completion=list(completion)):
                    conversations.append(_as_text(line, prompt, completion, tokenizer))
        yield from _in_order(
            _labelled_chats(chats, tokenizer, train_on) if chats else (),
            _labelled_prompts(texts, tokenizer, train_on, special=True) if texts else (),
            _labelled_prompts(conversations, tokenizer, train_on, special=False) if conversations else (),
        )


def _in_order(*kinds: Iterable[LabelledRow]) -> list[LabelledRow]:
    return sorted((row for kind in kinds for row in kind), key=lambda row: row.line)


def _labelled_prompts(
    rows: list[tuple[int, str, str]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, *, special: bool
) -> Iterator[LabelledRow]:
    """As TRL does: prompt and completion tokenised together; the completion begins where the prompt's tokens end.

    Rows are line, prompt, prompt and completion; `special`: the tokenizer adds what it begins and ends texts with.
    """
    prompt_ids = tokenizer([prompt for _, prompt, _ in rows], add_special_tokens=special)["input_ids"]
    whole_ids = tokenizer([whole for _, _, whole in rows], add_special_tokens=special)["input_ids"]
    for (line, _, _), prompt, whole in zip(rows, prompt_ids, whole_ids, strict=True):
        start = 0 if train_on == "all" else _shared(prompt, whole)
        yield LabelledRow(line, whole, [IGNORED] * start + whole[start:])


def _with_end(line: int, prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str, str]:
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise TemplateUnusable("The base's tokenizer has no end-of-sequence token, so no answer would ever end.")
    return line, prompt, prompt + completion + ("" if completion.endswith(eos) else eos)


def _as_text(
    line: int, prompt: list[ChatMessage], completion: list[ChatMessage], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, str, str]:
    messages = _for_template([*prompt, *completion], tokenizer)
    before = _render(line, tokenizer, messages[: len(prompt)], add_generation_prompt=True)
    whole = _render(line, tokenizer, messages)
    _require_content(line, completion[-1], whole[_shared(before, whole) :])
    return line, before, whole


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
    messages = _for_template(row.messages, tokenizer)
    whole = _render(line, tokenizer, messages, row.tools)
    if train_on == "all":
        return whole, []
    turns = []
    for index, message in enumerate(row.messages):
        if message.trained:
            start, end = _turn(line, whole, messages, index, row, tokenizer)
            _require_content(line, message, whole[start:end])
            turns.append((start, end))
    return whole, turns


def _for_template(messages: list[ChatMessage], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    knows_developers = "developer" in str(tokenizer.chat_template)
    return [
        {**message.for_template(), "role": "system"}
        if message.role == "developer" and not knows_developers
        else message.for_template()
        for message in messages
    ]


def _require_content(line: int, message: ChatMessage, turn: str) -> None:
    """Templates for pictures read lists of parts, and pass over a content that is text without a word; templates that
    know no tools pass over calls.
    """
    words = message.text.split()
    if words and words[-1] not in turn:
        raise TemplateUnusable(
            f"line {line}: the base's chat template leaves the answer's text out, so nothing of it would be learnt."
            " Use a base for text."
        )
    if any(name not in turn for name in message.called):
        raise TemplateUnusable(
            f"line {line}: the base's chat template leaves the answer's tool calls out, so none would be learnt."
            " Use a base that can call tools."
        )


def _turn(
    line: int,
    whole: str,
    messages: list[dict[str, Any]],
    index: int,
    row: ChatRow,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int]:
    through = whole if index == len(messages) - 1 else _render(line, tokenizer, messages[: index + 1], row.tools)
    if index:
        before = _render(line, tokenizer, messages[:index], row.tools, add_generation_prompt=True)
        start = _shared(before, through)
        # The generation prompt may differ from what stands before an answer; the conversation before it may not.
        fits = start == len(before) or _generation_prompt(line, tokenizer).endswith(before[start:])
    else:  # nothing to render before it; a template may still put its own system message there
        prompt = _generation_prompt(line, tokenizer)
        start = through.find(prompt) + len(prompt)
        if not prompt or prompt not in through:
            raise RowUnusable(
                f"line {line}: the base's chat template does not show where an answer begins that nothing goes before."
                " Begin with a user's message, or give the answer weight 0."
            )
        fits = True
    if not whole.startswith(through) and isinstance(tokenizer.eos_token, str):
        through = through.removesuffix(tokenizer.eos_token)  # Phi-3's closes a conversation, not its turns
    if not fits or not whole.startswith(through):
        raise RowUnusable(
            f"line {line}: the base's chat template changes messages[{index}] once others follow it, so what the model"
            " would learn is not what it will see. Split the conversation, or give that message weight 0."
        )
    return start, len(through)


def _generation_prompt(line: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template puts before an answer that is still to come; empty for templates that put nothing there."""
    question = [{"role": "user", "content": "."}]
    without = _render(line, tokenizer, question)
    with_it = _render(line, tokenizer, question, add_generation_prompt=True)
    return with_it[_shared(without, with_it) :]


def _render(
    line: int,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    if tokenizer.chat_template is None:
        raise TemplateUnusable(
            "The base has no chat template, so it reads no conversations. Use a base made for chat, or rows of"
            " prompt and completion."
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is somebody else's program, and fails as it likes
        if type(error) is TemplateError:  # what its `raise_exception` raises: this conversation is not for it
            raise RowUnusable(f"line {line}: the base's chat template refuses it: {error}") from error
        raise TemplateUnusable(
            f"line {line}: the base's chat template fails with {type(error).__name__}: {str(error)[:500]}"
        ) from error
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


def _in_batches(rows: Iterable[tuple[int, ChatRow | PromptRow]]) -> Iterator[list[tuple[int, ChatRow | PromptRow]]]:
    batch, characters = list[tuple[int, ChatRow | PromptRow]](), 0
    for line, row in rows:
        batch.append((line, row))
        characters += row.characters
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
