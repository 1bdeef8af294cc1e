"""The row shapes of a fine-tune file, and reading it: line by line, typed, never whole in memory.

A file is JSON lines of one shape: chat rows in OpenAI's form, `{"messages": [...]}`, or `{"prompt": ..., "completion":
...}`, both text or both lists of messages. The service checks an upload with this code, and the trainer reads it with
the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import msgspec

MAX_LINE_BYTES = 10 * 1024 * 1024
"""Bounds what one line may take of memory; at some 4 bytes a token it is beyond any model's context."""
MAX_PROBLEMS = 20
"""Listed; a file with more is beyond listing."""
MAX_MESSAGE_CHARACTERS = 500
"""Of a problem; what it quotes of a row can be as long as the row."""

Shape = Literal["messages", "prompt_completion"]


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


Row = ChatRow | PromptRow


class UnusableFile(ValueError):
    """A file that `check` would refuse; the message names the line."""


_DECODERS: dict[Shape, msgspec.json.Decoder[Any]] = {
    "messages": msgspec.json.Decoder(ChatRow),
    "prompt_completion": msgspec.json.Decoder(PromptRow),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one line, and what to do."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


NO_ROWS = Problem(1, "the file has no rows. Write one JSON object a line.")


@dataclass(slots=True)
class FileReport:
    """What a file is, judged by its rows."""

    shape: Shape | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def add(self, problem: Problem) -> None:
        """Count it, and list it while the list is short."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def check(file: BinaryIO) -> FileReport:
    """Read a file through. Never raises for what is in it."""
    report = FileReport()
    for line, row in _rows(file, report):
        problem = row.problem()
        if problem is None:
            report.rows += 1
        else:
            report.add(Problem(line, problem))
    if not report.rows and not report.problems:
        report.add(NO_ROWS)
    return report


def read_rows(file: BinaryIO) -> Iterator[tuple[int, Row]]:
    """The rows of a file that `check` found good, with their line numbers. Raises `UnusableFile` at a bad one."""
    report = FileReport()
    for line, row in _rows(file, report):
        if report.problems or (problem := row.problem()):
            raise UnusableFile(str(report.problems[0] if report.problems else Problem(line, problem or "")))
        report.rows += 1
        yield line, row
    if not report.rows and not report.problems:
        report.add(NO_ROWS)
    if report.problems:
        raise UnusableFile(str(report.problems[0]))


def summary(report: FileReport) -> str:
    """The first problems of a report in a sentence, and how many more there are."""
    listed = " ".join(str(problem) for problem in report.problems[:5])
    more = report.problem_count - len(report.problems[:5])
    return listed + (f" And {more} more lines." if more > 0 else "")


def _rows(file: BinaryIO, report: FileReport) -> Iterator[tuple[int, Row]]:
    """Every line that decodes; the others become problems of the report."""
    for number, line in _lines(file):
        if isinstance(line, Problem):
            report.add(line)
            return  # what follows an endless line is not worth finding
        if not line or line.isspace():
            continue
        row = _decoded(number, line, report)
        if isinstance(row, Problem):
            report.add(row)
        else:
            yield number, row


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | Problem]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            limit = MAX_LINE_BYTES // 1024**2
            yield (
                number,
                Problem(number, f"the line is longer than {limit} MiB. Split the row, or check the line ends."),
            )
            return
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


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


def _decoded(number: int, line: bytes, report: FileReport) -> Row | Problem:
    if b"\0" in line:
        return Problem(number, "there is a NUL byte in it. Save the file as UTF-8 text.")
    try:
        if report.shape is None:
            report.shape = _shape_of(msgspec.json.decode(line))
        row: Row = _DECODERS[report.shape].decode(line)
    except msgspec.ValidationError as error:
        return Problem(number, _explain(error, report.shape))
    except UnicodeDecodeError:
        return Problem(number, "it is not valid UTF-8. Save the file as UTF-8 text.")
    except (msgspec.DecodeError, RecursionError) as error:
        return Problem(number, f"it is not JSON ({error}). Write one JSON object a line.")
    return row


def _shape_of(row: object) -> Shape:
    """Raises `msgspec.ValidationError` for a row of no known shape."""
    if not isinstance(row, dict):
        raise msgspec.ValidationError("it is not a JSON object")
    if "messages" in row:
        return "messages"
    if "prompt" in row or "completion" in row:
        return "prompt_completion"
    seen = ", ".join(sorted(map(str, row))[:5]) or "nothing"
    raise msgspec.ValidationError(f"it has {seen}, but neither 'messages' nor 'prompt' and 'completion'")


def _explain(error: msgspec.ValidationError, shape: Shape | None) -> str:
    wanted = {
        "messages": 'Every row must look like {"messages": [{"role": "user", "content": "..."}, {"role": "assistant",'
        ' "content": "..."}]}.',
        "prompt_completion": 'Every row must look like {"prompt": "...", "completion": "..."}; in place of the'
        " texts there may be lists of messages.",
        None: 'Rows look like {"messages": [...]} or {"prompt": "...", "completion": "..."}.',
    }[shape]
    # What it quotes of the row goes into a database, which takes no NUL, and before somebody's eyes.
    quoted = "".join(char if char.isprintable() else " " for char in str(error)[:MAX_MESSAGE_CHARACTERS])
    return f"{quoted}. {wanted}"
