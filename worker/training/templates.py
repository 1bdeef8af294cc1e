"""A base's chat template: what it writes of a conversation, and where in that the assistant speaks.

A template with `{% generation %}` marks says where itself, and TRL has a variant with marks of many a stock template;
the variant also keeps what the stock one drops of earlier turns, such as thoughts. It is for training alone: the base
keeps its own. Of any other template a turn is what the conversation's text has more with it than before it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from app.files.rows import ChatMessage, ChatRow

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
"""The first character, and the one behind the last."""

QUESTION: Messages = [{"role": "user", "content": "Ping?"}]
TALK: Messages = [
    *QUESTION,
    {"role": "assistant", "content": "Pong."},
    {"role": "user", "content": "Once more?"},
    {"role": "assistant", "content": "Pong again."},
]
"""What every chat template writes; asked of one to learn its ways."""
CALL: Messages = [
    *QUESTION,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "ping", "arguments": {"key": "value"}}}],
    },
]


class TemplateUnusable(Exception):
    """The base cannot show where an answer ends, whatever the row."""


class Refused(ValueError):
    """A chat template does not write a row, or not all of it; `field` is what it fails at, where that is known."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Turn(NamedTuple):
    """What the assistant says at one go, the token that ends it included; some white space may follow."""

    message: int
    """Its index in the conversation."""
    start: int
    end: int
    """In characters of the conversation's text."""


class ChatTemplate:
    """A base's chat template, as it writes what is trained on. Of what it cannot write it raises `Refused`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Some bases have a second template for rows with tools.
        own = {with_tools: _own(tokenizer, with_tools=with_tools) for with_tools in (False, True)}
        self._own = {source: _Template(source, dict(tokenizer.special_tokens_map)) for source in own.values() if source}
        self._training = {source: _for_training(template, tokenizer) for source, template in self._own.items()}
        self._sources = own

    def conversation(self, row: ChatRow) -> tuple[str, list[Turn]]:
        """The text, and the turns in it that are trained."""
        template, marked = self._training[self._source(row.tools)]
        messages = template.messages(row.messages)
        trained = [index for index, message in enumerate(row.messages) if message.trained]
        spans: dict[int, Span] = {}
        if marked:
            text, spans = template.render_marked(messages, row.tools)
        else:
            text = template.render(messages, row.tools)
        turns = [
            Turn(index, *(spans.get(index) or template.span_by_prefixes(messages, row.tools, index, text)))
            for index in trained
        ]
        _require_prompt(row.messages, row.tools, text, "messages")
        for turn in turns:
            _require_answer(row.messages[turn.message], text[turn.start : turn.end], f"messages[{turn.message}]")
        return text, turns

    def text(self, row: ChatRow) -> str:
        """The text alone, of rows that are trained whole."""
        template, _ = self._training[self._source(row.tools)]
        text = template.render(template.messages(row.messages), row.tools)
        _require_prompt(row.messages, row.tools, text, "messages")
        for index, message in enumerate(row.messages):
            if message.trained:
                _require_answer(message, text, f"messages[{index}]")
        return text

    def answered(self, prompt: list[ChatMessage], answers: dict[str, list[ChatMessage]], tools: Tools) -> list[str]:
        """The text before an answer, and that with each of the answers, which are named as their fields are.

        By the base's own template, as TRL's trainers do: an answer comes last, where that drops nothing.
        """
        template = self._own[self._source(tools)]
        before = template.render(template.messages(prompt), tools, prompt=True)
        texts = []
        for name, answer in answers.items():
            text = template.render(template.messages([*prompt, *answer]), tools)
            _require_prompt(prompt, tools, text, "prompt")
            rest = text[_parting(before, text) :]
            _require_prompt(answer, None, rest, name)
            for index, message in enumerate(answer):
                if message.role == "assistant":
                    _require_answer(message, rest, f"{name}[{index}]")
            texts.append(text)
        return [before, *texts]

    def prompt(self, messages: list[ChatMessage], tools: Tools) -> str:
        """The text of a conversation up to where the assistant speaks next, as TRL's GRPO writes it too."""
        template = self._own[self._source(tools)]
        text = template.render(template.messages(messages), tools, prompt=True)
        _require_prompt(messages, tools, text, "messages")
        return text

    def _source(self, tools: Tools) -> str:
        source = self._sources[bool(tools)]
        if source is None:
            raise TemplateUnusable(
                "The base has no chat template, so it reads no conversations. Use a base made for chat, or rows of"
                " prompt and completion."
            )
        return source


@dataclass(frozen=True)
class _Template:
    """A template's source, ready to write."""

    source: str
    special: dict[str, Any]
    """The tokens that it may name, such as `eos_token`."""

    def render(self, messages: Messages, tools: Tools = None, *, prompt: bool = False) -> str:
        """The text, with `prompt` up to where the assistant speaks next."""
        return self._rendered(messages, tools, prompt=prompt)[0]

    def render_marked(self, messages: Messages, tools: Tools = None) -> tuple[str, dict[int, Span]]:
        """The text, and where in it the marks are, by message: none where there are not as many marks as answers."""
        text, spans = self._rendered(messages, tools, marks=True)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) > len(answers):  # Phi-3's has marks of their own around the end of the conversation
            spans = _joined(spans)
        if len(spans) != len(answers):
            return text, {}
        return text, {
            index: (self._speaks_from(messages, tools, index, text, start), end)
            for index, (start, end) in zip(answers, spans, strict=True)
        }

    def _speaks_from(self, messages: Messages, tools: Tools, index: int, text: str, start: int) -> int:
        """The mark's start, or a later one: some are around what the template puts before an answer as well."""
        if text.endswith(self.cue, 0, start):
            return start
        if index:
            return max(start, _parting(self.render(messages[:index], tools, prompt=True), text))
        places = range(max(0, start - len(self.cue)), start + 1)
        likeliest = max(places, key=lambda place: shared(self.cue, text[place : place + len(self.cue)]))
        return max(start, _parting(text[:likeliest] + self.cue, text))

    def span_by_prefixes(self, messages: Messages, tools: Tools, index: int, whole: str) -> Span:
        """What the conversation's text has more with a message than before it."""
        through = whole if index == len(messages) - 1 else self.render(messages[: index + 1], tools)
        if index:
            before = self.render(messages[:index], tools, prompt=True)
            start = _parting(before, through)
            # What is put before an answer to come may differ from what stands before one; the conversation may not.
            fits = start == len(before) or self.cue.endswith(before[start:])
        else:  # nothing to render before it; a template may still put its own system message there
            start = through.find(self.cue) + len(self.cue)
            fits = bool(self.cue) and self.cue in through
            if not fits:
                raise Refused(
                    "the base's chat template does not show where an answer begins that nothing goes before."
                    " Begin with a user's message, or give the answer weight 0.",
                    f"messages[{index}]",
                )
        if not whole.startswith(through) and isinstance(eos := self.special.get("eos_token"), str):
            through = through.removesuffix(eos)  # Phi-3's closes a conversation, not its turns
        if not fits or not whole.startswith(through):
            raise Refused(
                f"the base's chat template changes messages[{index}] once others follow it, so what the model"
                " would learn is not what it will see. Split the conversation, or give that message weight 0.",
                f"messages[{index}]",
            )
        return start, len(through)

    @cached_property
    def cue(self) -> str:
        """What it puts before an answer that is still to come; empty for templates that put nothing there."""
        without, with_it = self.render(QUESTION), self.render(QUESTION, prompt=True)
        return with_it[shared(without, with_it) :]

    @cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Most write an object's JSON; some expect the JSON, and fail at an object or write it as Python does."""
        try:
            return "'key'" in self.render(CALL)
        except Refused:
            return True

    def messages(self, given: list[ChatMessage]) -> Messages:
        """As it expects them."""
        messages = [message.for_template() for message in given]
        for message in messages:
            if message["role"] == "developer" and "developer" not in self.source:
                message["role"] = "system"
            if message.get("tool_calls") and self._takes_arguments_as_text:
                message["tool_calls"] = [_with_arguments_as_text(call) for call in message["tool_calls"]]
        return messages

    def _rendered(
        self, messages: Messages, tools: Tools, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self.special,
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is somebody else's program, and fails as it likes
            if type(error) is TemplateError:  # what its `raise_exception` raises: this conversation is not for it
                raise Refused(f"the base's chat template refuses it: {str(error)[:500]}") from error
            reason = f"{type(error).__name__}: {str(error)[:500]}"
            raise Refused(f"the base's chat template fails with {reason}") from error
        return texts[0], spans[0] if marks else []


def _own(tokenizer: PreTrainedTokenizerBase, *, with_tools: bool) -> str | None:
    try:
        source: str = tokenizer.get_chat_template(tools=[{}] if with_tools else None)
    except ValueError:  # there is none
        return None
    return source


def _for_training(own: _Template, tokenizer: PreTrainedTokenizerBase) -> tuple[_Template, bool]:
    """The template to train with, and whether its marks can be relied on."""
    template = own
    try:
        if own.source == _own(tokenizer, with_tools=False):  # the one of its templates that TRL looks at
            template = _Template(get_training_chat_template(tokenizer) or own.source, own.special)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  ValueError of a template that TRL does not know, and whatever the template raises
        return own, _marks_hold(own, tokenizer)
    return template, _marks_hold(template, tokenizer)


def _marks_hold(template: _Template, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the marks are around what the assistant says and the token that ends it, and nothing else."""
    if not has_generation_markers(template.source):
        return False
    try:
        if not is_chat_template_stop_token_trained(tokenizer, template.source):
            return False
        text, spans = template.render_marked(TALK)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  as above; a row will find out what it is
        return False
    try:
        differences = {index: template.span_by_prefixes(TALK, None, index, text) for index in (1, 3)}
    except Refused:  # GPT-OSS ends the last turn otherwise than the others
        return bool(spans)
    return {index: _stripped(text, span) for index, span in spans.items()} == {
        index: _stripped(text, span) for index, span in differences.items()
    }


def _stripped(text: str, span: Span) -> Span:
    start, end = span
    return start, start + len(text[start:end].rstrip())


def _joined(spans: list[Span]) -> list[Span]:
    """Those that touch made one."""
    joined = spans[:1]
    for start, end in spans[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _parting(before: str, text: str) -> int:
    """Where an answer begins: where the text parts from the prompt for one.

    An answer may begin as a mark does that only the prompt has, `<b>` as `<think>`: of a mark all is shared or nothing.
    """
    place = shared(before, text)
    return place if place == len(before) else max(before.rfind(end, 0, place) for end in ">]\n") + 1


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with in common, such as characters or tokens."""
    if other[: len(one)] == one:
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _with_arguments_as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _require_prompt(messages: list[ChatMessage], tools: Tools, text: str, field: str) -> None:
    """Templates pass over roles and tools that they do not know. One word of each message tells: some quote it."""
    for index, message in enumerate(messages):
        if message.role == "assistant" or (content := message.text) in text:
            continue
        words = re.findall(r"\w+", content)
        if words and max(words, key=len) not in text:
            raise Refused(
                f"the base's chat template leaves out what the {message.role} says in {field}[{index}], so the model"
                " would answer to what it does not see. Use a base that takes such messages.",
                f"{field}[{index}]",
            )
    for tool in tools or []:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text:
            raise Refused(
                "the base's chat template leaves the tools out. Use a base that can call tools, or leave 'tools' out"
                " of the rows.",
                "tools",
            )


def _require_answer(message: ChatMessage, turn: str, field: str) -> None:
    """Templates for pictures read lists of parts, and pass over a content that is text without a word; templates that
    know no tools pass over calls, and some drop thoughts. White space may change, and how thoughts are marked.
    """
    if not _has(turn, message.text):
        raise Refused(
            f"the base's chat template leaves some of the answer's text out, so it would not be learnt. Use a base for"
            f" text, and where it is thoughts that are left out, take them out of {field}.",
            field,
        )
    if any(name not in turn for name in message.called):
        raise Refused(
            "the base's chat template leaves the answer's tool calls out, so none would be learnt. Use a base that can"
            " call tools.",
            field,
        )
    if not _has(turn, message.thoughts):
        raise Refused(
            "the base's chat template leaves the answer's thoughts out, so they would not be learnt. Use a base that"
            " thinks, give the answer weight 0, or leave its thoughts out.",
            field,
        )


def _has(turn: str, words: str) -> bool:
    if words in turn:
        return True
    squeezed = "".join(turn.split())
    return all("".join(piece.split()) in squeezed for piece in re.split("</?think>", words))


def way(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How it is known what of a conversation is an answer, for who reads a report; None without a chat template."""
    own = _own(tokenizer, with_tools=False)
    if own is None:
        return None
    template, marked = _for_training(_Template(own, dict(tokenizer.special_tokens_map)), tokenizer)
    if not marked:
        return "what the chat template writes more with each answer than without it"
    return "the chat template's marks" if template.source == own else "TRL's training template for the base's own"
