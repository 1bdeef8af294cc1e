"""The row shapes of a fine-tune file, and reading it: line by line, typed, never whole in memory.

A file is JSON lines of one shape: chat rows in OpenAI's form, `{"messages": [...]}`, or `{"prompt": ..., "completion":
...}`, both text or both lists of messages. The service checks an upload with this code, and the trainer reads it with
the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import msgspec

from app.files.rows import ChatRow, PromptRow

MAX_LINE_BYTES = 10 * 1024 * 1024
"""Bounds what one line may take of memory; at some 4 bytes a token it is beyond any model's context."""
MAX_PROBLEMS = 20
"""Listed; a file with more is beyond listing."""
MAX_MESSAGE_CHARACTERS = 500
"""Of a problem; what it quotes of a row can be as long as the row."""

Shape = Literal["messages", "prompt_completion"]


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


def read_rows(file: BinaryIO) -> Iterator[tuple[int, ChatRow | PromptRow]]:
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


def _rows(file: BinaryIO, report: FileReport) -> Iterator[tuple[int, ChatRow | PromptRow]]:
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


def _decoded(number: int, line: bytes, report: FileReport) -> ChatRow | PromptRow | Problem:
    if b"\0" in line:
        return Problem(number, "there is a NUL byte in it. Save the file as UTF-8 text.")
    try:
        if report.shape is None:
            report.shape = _shape_of(msgspec.json.decode(line))
        row: ChatRow | PromptRow = _DECODERS[report.shape].decode(line)
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
