"""The rows that training knows, whatever a file calls their fields: formats converts to them, preparing reads them."""

from typing import Any, Literal

import msgspec


class TextPart(msgspec.Struct, frozen=True):
    """A piece of a message's content; only text can be trained on."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    weight: Literal[0, 1] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

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
        for name in ("name", "tool_calls", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls is not None:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return message


class ChatRow(msgspec.Struct, frozen=True):
    """A conversation; its assistant's messages are learnt."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def characters(self) -> int:
        """How much text there is to tokenise."""
        return sum(len(message.text) for message in self.messages)

    def problem(self) -> str | None:
        """Why nothing can be learnt from it."""
        if not any(message.role == "assistant" for message in self.messages):
            return "no message with role 'assistant'. Add the answer that the model shall learn."
        if not any(message.trained for message in self.messages):
            return "every assistant message has weight 0, so nothing is trained. Give one of them weight 1."
        for number, message in enumerate(self.messages):
            if message.trained and not message.text and not message.tool_calls:
                return f"messages[{number}] is an assistant message with no content. Write it, or give it weight 0."
        return None


class PromptRow(msgspec.Struct, frozen=True):
    """A prompt and what shall follow it: two texts, or two parts of a conversation."""

    prompt: str | list[ChatMessage]
    completion: str | list[ChatMessage]
    tools: list[dict[str, Any]] | None = None

    @property
    def characters(self) -> int:
        """How much text there is to tokenise."""
        parts = (self.prompt, self.completion)
        return sum(len(part) if isinstance(part, str) else sum(len(one.text) for one in part) for part in parts)

    def problem(self) -> str | None:
        """Why nothing can be learnt from it."""
        if isinstance(self.prompt, str) != isinstance(self.completion, str):
            return "'prompt' and 'completion' are of two kinds. Write both as text, or both as lists of messages."
        if not self.completion:
            return "'completion' is empty. Write what the model shall learn."
        if self.tools:
            return "'tools' belong to rows of 'messages'. Write the conversation as 'messages', or leave 'tools' out."
        if isinstance(self.completion, list):
            if any(message.weight == 0 for message in self.completion):
                return "a completion is trained whole, but has a message with weight 0. Write the row as 'messages'."
            last = self.completion[-1]
            if last.role != "assistant" or not (last.text or last.tool_calls):
                return "'completion' does not end with an assistant message. Add the answer that the model shall learn."
        return None if self.prompt != [] else "'prompt' has no messages. Write what the model answers to."


class TextRow(msgspec.Struct, frozen=True):
    """A plain text; all of it is learnt."""

    text: str


class PreferenceRow(msgspec.Struct, frozen=True):
    """Two answers to the same prompt, the better one first: three texts, or three parts of a conversation."""

    prompt: str | list[ChatMessage]
    chosen: str | list[ChatMessage]
    rejected: str | list[ChatMessage]
    tools: list[dict[str, Any]] | None = None


class UnpairedRow(msgspec.Struct, frozen=True):
    """A prompt, an answer to it, and whether that is wanted."""

    prompt: str | list[ChatMessage]
    completion: str | list[ChatMessage]
    label: bool
    tools: list[dict[str, Any]] | None = None


Row = ChatRow | PromptRow | TextRow | PreferenceRow | UnpairedRow


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
