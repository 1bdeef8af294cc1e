"""The rows that training knows, whatever a file calls their fields: formats converts to them, preparing reads them."""

from typing import Any, Literal, NamedTuple

import msgspec

from app.files.findings import Code


class Problem(NamedTuple):
    """Why nothing can be learnt from a row, and what to do."""

    code: Code
    message: str
    field: str | None = None


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message's content; only text can be trained on."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    weight: Literal[0, 1] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    """Another name for the same; chat templates are given both."""

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thoughts(self) -> str:
        """What the assistant says to itself first, where that is not part of the content."""
        return self.reasoning_content or self.thinking or ""

    @property
    def trained(self) -> bool:
        """Whether the model shall learn to say this."""
        return self.role == "assistant" and self.weight != 0

    @property
    def called(self) -> list[str]:
        """The names of the functions that it calls."""
        functions = [call.get("function") for call in self.tool_calls or []]
        names = [function.get("name") for function in functions if isinstance(function, dict)]
        return [name for name in names if isinstance(name, str)]

    def for_template(self) -> dict[str, Any]:
        """As a chat template expects it."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        for name in ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls is not None:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return message


class ChatRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation; its assistant's messages are learnt."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def characters(self) -> int:
        """How much text there is to tokenise."""
        return sum(len(message.text) for message in self.messages)

    def problem(self) -> Problem | None:
        """Why nothing can be learnt from it."""
        learnt = False
        for number, message in enumerate(self.messages):
            if message.trained:
                learnt = True
                if not message.text and not message.tool_calls:
                    return Problem(
                        Code.NO_ANSWER,
                        f"messages[{number}] is an assistant message with no content. Write it, or give it weight 0.",
                        f"messages[{number}].content",
                    )
        if learnt:
            return None
        if any(message.role == "assistant" for message in self.messages):
            said = "every assistant message has weight 0, so nothing is trained. Give one of them weight 1."
        else:
            said = "no message with role 'assistant'. Add the answer that the model shall learn."
        return Problem(Code.NO_ANSWER, said, "messages")


class PromptRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and what shall follow it: two texts, or two parts of a conversation."""

    prompt: str | list[ChatMessage]
    completion: str | list[ChatMessage]
    tools: list[dict[str, Any]] | None = None

    @property
    def characters(self) -> int:
        """How much text there is to tokenise."""
        parts = (self.prompt, self.completion)
        return sum(len(part) if isinstance(part, str) else sum(len(one.text) for one in part) for part in parts)

    def problem(self) -> Problem | None:
        """Why nothing can be learnt from it."""
        if isinstance(self.prompt, str) != isinstance(self.completion, str):
            return _two_kinds("prompt", "completion")
        if not self.completion:
            return _no_answer(self.completion, "completion")
        if self.tools:
            return Problem(
                Code.WRONG_SHAPE,
                "'tools' belong to rows of 'messages'. Write the conversation as 'messages', or leave 'tools' out.",
                "tools",
            )
        if isinstance(self.completion, list) and any(message.weight == 0 for message in self.completion):
            return Problem(
                Code.WRONG_SHAPE,
                "a completion is trained whole, but has a message with weight 0. Write the row as 'messages'.",
                "completion",
            )
        return _no_answer(self.completion, "completion") or _no_prompt(self.prompt)


class TextRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plain text; all of it is learnt."""

    text: str

    def problem(self) -> Problem | None:
        """Why nothing can be learnt from it."""
        return None if self.text else Problem(Code.NO_ANSWER, "'text' is empty. Write what shall be learnt.", "text")


class PreferenceRow(msgspec.Struct, frozen=True):
    """Two answers to the same prompt, the better one first: three texts, or three parts of a conversation."""

    prompt: str | list[ChatMessage]
    chosen: str | list[ChatMessage]
    rejected: str | list[ChatMessage]
    tools: list[dict[str, Any]] | None = None

    def problem(self) -> Problem | None:
        """Why nothing can be learnt from it."""
        for name, answer in (("chosen", self.chosen), ("rejected", self.rejected)):
            if isinstance(self.prompt, str) != isinstance(answer, str):
                return _two_kinds("prompt", name)
            if problem := _no_answer(answer, name):
                return problem
        if self.chosen == self.rejected:
            return Problem(
                Code.NO_ANSWER, "'chosen' and 'rejected' are equal, so neither is preferred. Leave the row out."
            )
        return _no_prompt(self.prompt)


class UnpairedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, an answer to it, and whether that is wanted."""

    prompt: str | list[ChatMessage]
    completion: str | list[ChatMessage]
    label: bool
    tools: list[dict[str, Any]] | None = None

    def problem(self) -> Problem | None:
        """Why nothing can be learnt from it."""
        if isinstance(self.prompt, str) != isinstance(self.completion, str):
            return _two_kinds("prompt", "completion")
        return _no_answer(self.completion, "completion") or _no_prompt(self.prompt)


class GradedRow(msgspec.Struct, frozen=True):
    """A conversation that is to be answered, and all that its row has for whoever grades the answers."""

    messages: list[ChatMessage]
    item: dict[str, Any]
    """The row as it lies in the file."""
    tools: list[dict[str, Any]] | None = None
    left_out: bool = False
    """Whether the file has an answer, which the model does not see."""

    def problem(self) -> Problem | None:
        """Why nobody can answer it."""
        if not any(message.text or message.tool_calls for message in self.messages):
            return Problem(Code.NO_ANSWER, "there is nothing in it to answer. Write the user's message.", "messages")
        if self.messages[-1].role in ("system", "developer"):
            said = "it ends with instructions, and nothing is asked. Add the user's message."
            return Problem(Code.WRONG_SHAPE, said, "messages")
        return None


Row = ChatRow | PromptRow | TextRow | PreferenceRow | UnpairedRow | GradedRow


def graded(row: ChatRow, item: dict[str, Any]) -> GradedRow:
    """A conversation up to where the assistant speaks last, if that is its end."""
    answered = bool(row.messages) and row.messages[-1].role == "assistant"
    return GradedRow(row.messages[:-1] if answered else row.messages, item, row.tools, left_out=answered)


def _two_kinds(one: str, other: str) -> Problem:
    return Problem(
        Code.WRONG_SHAPE,
        f"'{one}' and '{other}' are of two kinds. Write both as text, or both as lists of messages.",
        other,
    )


def _no_answer(answer: str | list[ChatMessage], field: str) -> Problem | None:
    if not answer:
        return Problem(Code.NO_ANSWER, f"'{field}' is empty. Write what the model shall learn.", field)
    if isinstance(answer, list) and (answer[-1].role != "assistant" or not (answer[-1].text or answer[-1].tool_calls)):
        return Problem(
            Code.NO_ANSWER,
            f"'{field}' does not end with an assistant message. Add the answer that the model shall learn.",
            field,
        )
    return None


def _no_prompt(prompt: str | list[ChatMessage]) -> Problem | None:
    if prompt != []:
        return None
    return Problem(Code.WRONG_SHAPE, "'prompt' has no messages. Write what the model answers to.", "prompt")


def _call_for_template(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's arguments are JSON in a string; templates take the object, and would quote the string once more."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except (msgspec.DecodeError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
