"""The shapes that a file's rows may have, by what they are known, and what each of them becomes.

A shape is known by the names of a row's fields. Its source is the struct that a row of it is decoded into, typed, so
that an error says where; a source that is no canonical row converts itself to one.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from app.files.findings import Code
from app.files.rows import (
    ChatMessage,
    ChatRow,
    PreferenceRow,
    Problem,
    PromptRow,
    Row,
    TextPart,
    TextRow,
    UnpairedRow,
)


class Shape(StrEnum):
    """What a file's rows look like."""

    MESSAGES = "messages"
    """OpenAI's chat rows; with the old `functions` and `function_call` too."""
    PROMPT_COMPLETION = "prompt_completion"
    """A prompt and what follows it, texts or lists of messages."""
    PROMPT_ONLY = "prompt_only"
    """A prompt to answer; what is learnt comes from grading the answers."""
    TEXT = "text"
    """Plain text."""
    ALPACA = "alpaca"
    """An instruction, perhaps an input to it, and the output."""
    SHAREGPT = "sharegpt"
    """A conversation of turns that have `from` and `value`."""
    QUESTION_ANSWER = "question_answer"
    """A question and its answer, under any of several names."""
    PREFERENCE = "preference"
    """Two answers, the prompt beside them or at the beginning of both."""
    OPENAI_PREFERENCE = "openai_preference"
    """The same as OpenAI writes it."""
    SHAREGPT_PREFERENCE = "sharegpt_preference"
    """A conversation with two turns that might follow it."""
    UNPAIRED = "unpaired"
    """A prompt, an answer to it, and whether that is wanted."""
    LABELLED = "labelled"
    """A conversation, and whether its last answer is wanted."""


class Form(NamedTuple):
    """How a shape is spoken of."""

    name: str
    example: str
    """A right row of it."""
    conversion: str | None = None
    """What becomes what; None where the row is canonical as it is."""


FORMS: dict[Shape, Form] = {
    Shape.MESSAGES: Form(
        "chat rows",
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
        "functions and function_call → tools and tool_calls",
    ),
    Shape.PROMPT_COMPLETION: Form("prompts with completions", '{"prompt": "...", "completion": "..."}'),
    Shape.PROMPT_ONLY: Form("prompts without answers", '{"prompt": "..."}', "prompt → messages"),
    Shape.TEXT: Form("plain text", '{"text": "..."}'),
    Shape.ALPACA: Form(
        "Alpaca rows",
        '{"instruction": "...", "input": "...", "output": "..."}',
        "Alpaca's instruction, input and output → messages",
    ),
    Shape.SHAREGPT: Form(
        "ShareGPT conversations",
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
        "ShareGPT's conversations → messages",
    ),
    Shape.QUESTION_ANSWER: Form(
        "questions with answers", '{"question": "...", "answer": "..."}', "question and answer → messages"
    ),
    Shape.PREFERENCE: Form(
        "preferences",
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        "what chosen and rejected begin with in common → prompt",
    ),
    Shape.OPENAI_PREFERENCE: Form(
        "OpenAI's preferences",
        '{"input": {"messages": [{"role": "user", "content": "..."}]}, "preferred_output": [{"role": "assistant",'
        ' "content": "..."}], "non_preferred_output": [{"role": "assistant", "content": "..."}]}',
        "input, preferred and non-preferred output → prompt, chosen and rejected",
    ),
    Shape.SHAREGPT_PREFERENCE: Form(
        "ShareGPT preferences",
        '{"conversations": [{"from": "human", "value": "..."}], "chosen": {"from": "gpt", "value": "..."},'
        ' "rejected": {"from": "gpt", "value": "..."}}',
        "ShareGPT's conversations, chosen and rejected → prompt, chosen and rejected",
    ),
    Shape.UNPAIRED: Form("judged answers", '{"prompt": "...", "completion": "...", "label": true}'),
    Shape.LABELLED: Form(
        "judged conversations",
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "label": true}',
        "a conversation and its label → prompt, completion and label",
    ),
}


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """By the fields that it has, values of null aside; None for what no shape knows."""
    names = {name for name, value in row.items() if value is not None}
    judged = "label" in names
    if "conversations" in names or ("messages" in names and not {"prompt", "chosen", "rejected"} <= names):
        if {"chosen", "rejected"} <= names:
            return Shape.SHAREGPT_PREFERENCE
        if judged and not _is_open(row.get("messages")):
            return Shape.LABELLED
        turned = "conversations" in names or _has_turns(row["messages"])
        return Shape.SHAREGPT if turned else Shape.MESSAGES
    if names & {"preferred_output", "preferred_completion", "non_preferred_output", "non_preferred_completion"}:
        return Shape.OPENAI_PREFERENCE
    if {"chosen", "rejected"} & names:
        return None if _prompt_by_another_name(names) else Shape.PREFERENCE
    if "completion" in names:
        return Shape.UNPAIRED if judged else Shape.PROMPT_COMPLETION
    if {"instruction", "output"} <= names:
        return Shape.ALPACA
    if _question_and_answer(names):
        return Shape.QUESTION_ANSWER
    if "text" in names:
        return Shape.TEXT
    return Shape.PROMPT_ONLY if "prompt" in names else None


def prompt_of(row: Mapping[str, Any]) -> Shape | None:
    """By the prompt that it has, whatever stands beside it: all other fields are its grader's."""
    if row.get("messages") is not None and not _has_turns(row["messages"]):
        return Shape.MESSAGES
    return Shape.PROMPT_ONLY if row.get("prompt") is not None else shape_of(row)


def source_of(shape: Shape, row: Mapping[str, Any]) -> type[msgspec.Struct]:
    """What the rows of a file are decoded into whose first row this is; strict about fields that it does not know."""
    match shape:
        case Shape.OPENAI_PREFERENCE:
            return PreferredCompletion if "preferred_completion" in row else PreferredOutput
        case Shape.QUESTION_ANSWER:
            question, answer = _question_and_answer(row) or ("question", "answer")
            return _question_answer(question, answer, *(_named(row, name) for name in ("context", "system")))
    return _SOURCES[shape]


def unknown(row: Mapping[str, Any]) -> str:
    """What to say of a row that `shape_of` does not know."""
    names = [str(name)[:50] for name in row]
    said = f"it has {_listed(row)}, but neither 'messages' nor 'prompt' and 'completion', nor another shape's fields. "
    if {"chosen", "rejected"} <= row.keys() and (name := _prompt_by_another_name(row)):
        return f"it has 'chosen' and 'rejected', and '{name}' beside them. Rename it to 'prompt'."
    if {"role", "content"} <= row.keys():
        return said + 'It looks like one message: a row is a whole conversation, {"messages": [...]}.'
    near = [(name, close[0]) for name in names if (close := get_close_matches(name, _KNOWN, n=1, cutoff=0.8))]
    if near:
        return said + f"Did you mean '{near[0][1]}' with '{near[0][0]}'?"
    lists = [name[:50] for name, value in row.items() if _dicts(value)]
    if len(row) <= 3 and lists:
        return said + f"If the rows are in '{lists[0]}', send that array by itself."
    wanted = ", ".join(FORMS[shape].example for shape in (Shape.MESSAGES, Shape.PROMPT_COMPLETION, Shape.TEXT))
    return said + f"Rows look like {wanted}; a table has columns of such names."


def _listed(row: Mapping[str, Any]) -> str:
    """The names of a row's fields, as many and as much of them as one reads."""
    return ", ".join(str(name)[:50] for name in itertools.islice(row, 5)) or "nothing"


def another(row: Mapping[str, Any], own: Shape | None, files: Shape, source: type[msgspec.Struct]) -> str:
    """What to say of a row that is not of its file's shape."""
    missing = [
        field.encode_name
        for field in msgspec.structs.fields(source)
        if field.required and row.get(field.encode_name) is None
    ]
    lacks = f"Object missing required field `{missing[0]}`. " if missing else ""
    kind = f", as {FORMS[own].name} have" if own else ""
    return (
        f"{lacks}The row has {_listed(row)}{kind}, but the file began with {FORMS[files].name}. Every row must look"
        f" like {FORMS[files].example}."
    )


class Unusable(Exception):
    """A row that its source cannot convert."""

    def __init__(self, code: Code, message: str, field: str | None) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, field)


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row in a form that is not canonical."""

    def row(self) -> Row:
        """The canonical row. Raises `Unusable`."""
        raise NotImplementedError

    @property
    def converted(self) -> bool:
        """Whether the row differs from its source in more than its type."""
        return True


class Prompt(Source, frozen=True):
    """`prompt_only`."""

    prompt: str | list[ChatMessage]
    tools: list[dict[str, Any]] | None = None

    def row(self) -> ChatRow:
        """A conversation that is still to be answered."""
        prompt = [ChatMessage("user", self.prompt)] if isinstance(self.prompt, str) else self.prompt
        if not any(message.text or message.tool_calls for message in prompt):
            raise Unusable(Code.NO_ANSWER, "'prompt' is empty. Write what the model shall answer.", "prompt")
        return ChatRow(prompt, tools=self.tools)


class Alpaca(Source, frozen=True):
    """`alpaca`."""

    instruction: str
    output: str
    input: str | None = None
    system: str | None = None
    history: list[tuple[str, str]] | None = None

    def row(self) -> ChatRow:
        """The instruction with its input is the user's message; earlier pairs go before."""
        if not self.output:
            raise _empty("output")
        before = [message for pair in self.history or [] for message in _asked(pair[0], pair[1])]
        return ChatRow([*_system(self.system), *before, *_asked(_joined(self.instruction, self.input), self.output)])


class QuestionAnswer(Source, frozen=True):
    """`question_answer`; `_question_answer` makes its fields, which have the file's names."""

    def row(self) -> ChatRow:
        """The question, with its context where there is one, is the user's message."""
        field = dict(zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True))
        given = msgspec.structs.asdict(self)
        if not given["answer"]:
            raise _empty(field["answer"])
        asked = _asked(_joined(given["question"], given["context"]), given["answer"])
        return ChatRow([*_system(given["system"]), *asked])


class Preference(Source, frozen=True):
    """`preference`."""

    chosen: str | list[ChatMessage]
    rejected: str | list[ChatMessage]
    prompt: str | list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def converted(self) -> bool:
        """Whether the prompt has to be taken out of the answers."""
        return self.prompt is None or isinstance(self.prompt, str) != isinstance(self.chosen, str)

    def row(self) -> PreferenceRow:
        """As it is, or with what both answers begin with as the prompt; TRL does the same."""
        if self.prompt is not None and not self.converted:
            return PreferenceRow(self.prompt, self.chosen, self.rejected, self.tools)
        if self.chosen == self.rejected or isinstance(self.chosen, str) != isinstance(self.rejected, str):
            return PreferenceRow(self.chosen[:0], self.chosen, self.rejected)  # its own check says what is wrong
        shared = _shared(self.chosen, self.rejected)
        chosen, rejected = self.chosen[shared:], self.rejected[shared:]
        if shared:
            return PreferenceRow(self.chosen[:shared], chosen, rejected, self.tools)
        if isinstance(self.prompt, str):
            return PreferenceRow([ChatMessage("user", self.prompt)], chosen, rejected, self.tools)
        raise Unusable(
            Code.WRONG_SHAPE,
            "'chosen' and 'rejected' begin with nothing in common, so there is no prompt. Write it in 'prompt'.",
            "prompt",
        )


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What OpenAI's preferences are between two answers to."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferredOutput(Source, frozen=True):
    """`openai_preference`, as the guide writes it."""

    input: Input
    preferred_output: list[ChatMessage]
    non_preferred_output: list[ChatMessage]

    def row(self) -> PreferenceRow:
        """The conversation in `input` is the prompt."""
        return PreferenceRow(self.input.messages, self.preferred_output, self.non_preferred_output, self.input.tools)


class PreferredCompletion(Source, frozen=True):
    """`openai_preference`, as the schema writes it."""

    input: Input
    preferred_completion: list[ChatMessage]
    non_preferred_completion: list[ChatMessage]

    def row(self) -> PreferenceRow:
        """The conversation in `input` is the prompt."""
        answers = (self.preferred_completion, self.non_preferred_completion)
        return PreferenceRow(self.input.messages, *answers, tools=self.input.tools)


Speaker = Literal[
    "human", "user", "gpt", "assistant", "chatgpt", "bing", "bard", "model", "system", "developer",
    "function_call", "tool_call", "observation", "tool", "function", "function_response",
]  # fmt: skip
Calls = Literal["calls"]
_ROLES: dict[Speaker, Literal["user", "assistant", "system", "developer", "tool"] | Calls] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "function_call": "calls",
    "tool_call": "calls",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
}


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a conversation, as ShareGPT writes it or as OpenAI does."""

    from_: Speaker | None = msgspec.field(default=None, name="from")
    value: str | None = None
    role: Speaker | None = None
    content: str | list[TextPart] | None = None
    weight: Literal[0, 1] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ShareGPT(Source, frozen=True):
    """`sharegpt`; the turns may stand under either name."""

    conversations: list[Turn] | None = None
    messages: list[Turn] | None = None
    system: str | None = None
    tools: str | list[dict[str, Any]] | None = None

    def row(self) -> ChatRow:
        """The turns as messages, and the system's before them."""
        messages = self._prompt()
        offset = len(messages) - len(self._turns)
        if not any(message.role == "assistant" for message in messages):
            said = "no turn of the assistant ('gpt'). Add the answer that the model shall learn."
            raise Unusable(Code.NO_ANSWER, said, self._where)
        for number, message in enumerate(messages[offset:]):
            if message.trained and not message.text and not message.tool_calls:
                raise _empty(f"{self._where}[{number}].{'content' if self._turns[number].role else 'value'}")
        return ChatRow(messages, tools=self._tools())

    @property
    def _where(self) -> str:
        return "messages" if self.conversations is None else "conversations"

    @property
    def _turns(self) -> list[Turn]:
        return (self.messages if self.conversations is None else self.conversations) or []

    def _prompt(self) -> list[ChatMessage]:
        return [*_system(self.system), *_messages(self._turns, self._where)]

    def _tools(self) -> list[dict[str, Any]] | None:
        """OpenAI's form; ShareGPT's is the function by itself, and the list often JSON in a string."""
        tools = self.tools
        if isinstance(tools, str):
            try:
                tools = msgspec.json.decode(tools, type=list[dict[str, Any]]) if tools.strip() else None
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                message = "'tools' is no JSON array of objects. Write the list itself."
                raise Unusable(Code.WRONG_SHAPE, message, "tools") from error
        return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or []] or None


class ShareGPTPreference(ShareGPT, frozen=True, kw_only=True):
    """`sharegpt_preference`."""

    chosen: Turn | list[Turn]
    rejected: Turn | list[Turn]

    def row(self) -> PreferenceRow:  # type: ignore[override]  # another kind of row from the same turns
        """The turns are the prompt."""
        chosen, rejected = (
            _messages(turns if isinstance(turns, list) else [turns], name)
            for name, turns in (("chosen", self.chosen), ("rejected", self.rejected))
        )
        return PreferenceRow(self._prompt(), chosen, rejected, self._tools())


class Labelled(ShareGPT, frozen=True, kw_only=True):
    """`labelled`."""

    label: bool

    def row(self) -> UnpairedRow:  # type: ignore[override]  # another kind of row from the same turns
        """The last message is judged, the others are its prompt."""
        messages = self._prompt()
        if not messages or messages[-1].role != "assistant":
            message = f"'{self._where}' does not end with the assistant's message, which the label judges. Add it."
            raise Unusable(Code.NO_ANSWER, message, self._where)
        if not (messages[-1].text or messages[-1].tool_calls):
            raise _empty(f"{self._where}[{len(self._turns) - 1}]")
        return UnpairedRow(messages[:-1], messages[-1:], self.label, self._tools())


def _messages(turns: list[Turn], where: str) -> list[ChatMessage]:
    """OpenAI's messages; calls get ids, and the observations after them answer them in order."""
    messages: list[ChatMessage] = []
    ids = (f"call_{number}" for number in itertools.count(1))
    waiting: list[str] = []
    for number, turn in enumerate(turns):
        here = f"{where}[{number}]"
        speaker = turn.from_ or turn.role
        if speaker is None:
            raise Unusable(Code.WRONG_SHAPE, f"{here} has neither 'from' nor 'role'. Say whose turn it is.", here)
        if turn.from_ and turn.value is None and turn.content is None:
            raise Unusable(Code.WRONG_SHAPE, f"{here} has no 'value'. Write what is said.", f"{here}.value")
        said = turn.content if turn.value is None else turn.value
        role = _ROLES[speaker]
        if role == "calls":
            calls = [{"id": next(ids), **call} for call in _calls(said, here)]
            waiting = [str(call["id"]) for call in calls]
            messages.append(ChatMessage("assistant", weight=turn.weight, tool_calls=calls))
        else:
            answers = turn.tool_call_id or (waiting.pop(0) if role == "tool" and waiting else None)
            messages.append(ChatMessage(role, said, turn.weight, turn.name, turn.tool_calls, answers))
    return messages


class _Call(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | str = {}


def _calls(said: object, here: str) -> list[dict[str, Any]]:
    """What a `function_call` turn calls: JSON of a name and arguments, or a list of them."""
    try:
        calls = msgspec.json.decode(said if isinstance(said, str) else "", type=_Call | list[_Call])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        message = f'{here} is a function call, but not JSON like {{"name": "...", "arguments": {{...}}}}. Write it so.'
        raise Unusable(Code.WRONG_SHAPE, message, here) from error
    return [openai_call(call.name, call.arguments) for call in (calls if isinstance(calls, list) else [calls])]


def openai_call(name: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
    """A call as OpenAI writes it, whose arguments are JSON in a string."""
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    return {"type": "function", "function": {"name": name, "arguments": text}}


def modern(row: dict[str, Any]) -> dict[str, Any]:
    """A chat row with `functions` and `function_call`, OpenAI's form of 2023, as one with tools and tool calls.

    Raises `Unusable`. A row without them is given back as it is.
    """
    old = [message for message in _dicts(row.get("messages")) if message.get("function_call") is not None]
    if row.get("functions") is None and not old:
        return row
    ids = (f"call_{number}" for number in itertools.count(1))
    messages: list[Any] = []
    waiting: str | None = None
    for number, message in enumerate(row.get("messages") or []):
        if not isinstance(message, dict):
            messages.append(message)
            continue
        new = {name: value for name, value in message.items() if name != "function_call"}
        if (call := message.get("function_call")) is not None:
            field = f"messages[{number}].function_call"
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise Unusable(Code.WRONG_SHAPE, f"{field} has no 'name'. Write which function is called.", field)
            arguments = call.get("arguments", "{}")
            waiting = next(ids)
            new["tool_calls"] = [
                {"id": waiting, **openai_call(call["name"], arguments if isinstance(arguments, dict | str) else "{}")}
            ]
        elif message.get("role") == "function":
            new = {**new, "role": "tool"} | ({"tool_call_id": waiting} if waiting else {})
            waiting = None
        messages.append(new)
    made = {name: value for name, value in row.items() if name not in ("functions", "function_call")}
    made["messages"] = messages
    if isinstance(row.get("functions"), list):
        made["tools"] = [{"type": "function", "function": function} for function in row["functions"]]
    return made


def known_part(value: dict[str, Any], source: type[msgspec.Struct]) -> tuple[Any, set[str]]:
    """A row as decoded without types, less the fields that its source does not know; and the names of those."""
    ignored: set[str] = set()
    return _known_part(value, _knowledge(source), "", ignored), ignored


class _Knowledge(NamedTuple):
    """What is looked for in a value that may be an object, or a list."""

    fields: dict[str, "_Knowledge | None"] | None
    """Of the object, by name; None of those that have no objects in them."""
    items: "_Knowledge | None"


@functools.cache
def _knowledge(type_: Any) -> _Knowledge | None:
    structs = [kind for kind in _kinds(type_) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    lists = [get_args(kind)[0] for kind in _kinds(type_) if get_origin(kind) is list]
    fields = {one.encode_name: _knowledge(one.type) for one in msgspec.structs.fields(structs[0])} if structs else None
    items = _knowledge(lists[0]) if lists else None
    return _Knowledge(fields, items) if structs or items else None


def _known_part(value: Any, knowledge: _Knowledge | None, path: str, ignored: set[str]) -> Any:
    if knowledge is None:
        return value
    if isinstance(value, dict) and knowledge.fields is not None:
        known: dict[str, Any] = {}
        for name, inner in value.items():
            if name in knowledge.fields:
                deeper = knowledge.fields[name]
                known[name] = _known_part(inner, deeper, f"{path}{name}", ignored) if deeper else inner
            elif inner not in (None, ""):
                ignored.add(f"{path}{name}")
        return known
    if isinstance(value, list) and knowledge.items is not None:
        return [_known_part(inner, knowledge.items, f"{path}[].", ignored) for inner in value]
    return value


def _kinds(type_: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


class _Column(NamedTuple):
    """What a source makes of a column of text."""

    name: str
    may_be_empty: bool
    is_bool: bool
    is_text: bool


@functools.cache
def _columns(source: type[msgspec.Struct]) -> list[_Column]:
    return [
        _Column(
            field.encode_name,
            may_be_empty=field.required and str in _kinds(field.type),
            is_bool=bool in _kinds(field.type),
            is_text=str in _kinds(field.type),
        )
        for field in msgspec.structs.fields(source)
    ]


def from_cells(cells: Mapping[str, str], source: type[msgspec.Struct]) -> dict[str, Any]:
    """A row of a table whose cells are all text, with JSON read where the source wants no text. Raises `Unusable`."""
    row: dict[str, Any] = dict(cells)
    for name, may_be_empty, is_bool, is_text in _columns(source):
        cell = cells.get(name)
        if cell is None:
            continue
        if not cell:
            if not may_be_empty:
                del row[name]
        elif is_bool:
            row[name] = _BOOLS.get(cell.strip().lower(), cell)
        elif not is_text:
            row[name] = _json_in(cell, name)
        elif _has_turns(maybe := value_of(cell)) or _has_roles(maybe):
            row[name] = maybe
    return row


def _json_in(cell: str, column: str) -> Any:
    try:
        return msgspec.json.decode(cell)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        quotes = " It has single quotes, as Python prints: write it with json.dumps." if "{'" in cell else ""
        message = f"the cell of '{column}' is not JSON ({error}), which this column has to be.{quotes}"
        raise Unusable(Code.NOT_JSON, message, column) from error


_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def value_of(cell: str) -> Any:
    """A cell as the JSON that it seems to be, else its text."""
    if cell.lstrip()[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(cell)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return cell
    return cell


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _has_turns(value: object) -> bool:
    return any("from" in item for item in _dicts(value)[:1])


def _is_open(value: object) -> bool:
    """Whether a conversation waits for an answer."""
    return any(item.get("role") in ("user", "tool") for item in _dicts(value)[-1:])


def _has_roles(value: object) -> bool:
    return any("role" in item for item in _dicts(value)[:1])


QUESTIONS = ("question", "query", "instruction", "prompt", "input")
ANSWERS = ("best answer", "answer", "response", "output")
"""Names of the two, in any case; of several the first is taken."""


def _named(names: Iterable[str], *wanted: str) -> str | None:
    """The first of the wanted names that is there, as it is written there."""
    written = {name.lower().replace("_", " "): name for name in names}
    return next((written[name] for name in wanted if name in written), None)


def _question_and_answer(names: Iterable[str]) -> tuple[str, str] | None:
    names = list(names)
    question, answer = _named(names, *QUESTIONS), _named(names, *ANSWERS)
    return (question, answer) if question and answer else None


def _prompt_by_another_name(names: Iterable[str]) -> str | None:
    names = set(names)
    return None if "prompt" in names else _named(names, "question", "query", "instruction", "input")


@functools.cache
def _question_answer(question: str, answer: str, context: str | None, system: str | None) -> type[msgspec.Struct]:
    """The struct whose fields have a file's own names, so that its errors do."""
    optional = [("context", str | None, None), ("system", str | None, None)]
    names = {"question": question, "answer": answer, "context": context or "context", "system": system or "system"}
    return msgspec.defstruct(
        "QuestionAnswer",
        [("question", str), ("answer", str), *optional],
        bases=(QuestionAnswer,),
        rename=names,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


_SOURCES: dict[Shape, type[msgspec.Struct]] = {
    Shape.MESSAGES: ChatRow,
    Shape.PROMPT_COMPLETION: PromptRow,
    Shape.PROMPT_ONLY: Prompt,
    Shape.TEXT: TextRow,
    Shape.ALPACA: Alpaca,
    Shape.SHAREGPT: ShareGPT,
    Shape.PREFERENCE: Preference,
    Shape.SHAREGPT_PREFERENCE: ShareGPTPreference,
    Shape.UNPAIRED: UnpairedRow,
    Shape.LABELLED: Labelled,
}
_KNOWN = (*{name for source in _SOURCES.values() for name in source.__struct_encode_fields__}, *QUESTIONS, *ANSWERS)


def _system(text: str | None) -> list[ChatMessage]:
    return [ChatMessage("system", text)] if text else []


def _asked(question: str, answer: str) -> list[ChatMessage]:
    return [ChatMessage("user", question), ChatMessage("assistant", answer)]


def _joined(instruction: str, more: str | None) -> str:
    """As Alpaca's own code puts them together, and Dolly's: the text to work on after a blank line."""
    return "\n\n".join(part for part in (instruction, more) if part)


def _empty(field: str) -> Unusable:
    return Unusable(Code.NO_ANSWER, f"'{field}' is empty. Write the answer that the model shall learn.", field)


def _shared(chosen: str | list[ChatMessage], rejected: str | list[ChatMessage]) -> int:
    """How much two answers begin with in common, as TRL's `extract_prompt` finds it: at least one item of each is left,
    and a space before the first difference belongs to the answers.
    """
    shorter = min(len(chosen), len(rejected))
    for index in range(shorter):
        if chosen[index] != rejected[index]:
            return index - 1 if index and chosen[index - 1] == " " else index
    return max(shorter - 1, 0)
