"""What a fine-tune file may hold, and what is said of one that holds something else."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.files import formats
from app.files.formats import FileReport
from app.files.rows import ChatMessage, ChatRow, PromptRow

QUESTION = {"role": "user", "content": "What colour?"}
ANSWER = {"role": "assistant", "content": "Blue."}
GOOD = json.dumps({"messages": [QUESTION, ANSWER]}).encode() + b"\n"


def chat(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": messages, **more}).encode() + b"\n"


def check(content: bytes) -> FileReport:
    return formats.check(io.BytesIO(content))


def only_problem(content: bytes) -> str:
    report = check(content)
    assert report.problem_count == 1, report.problems
    return str(report.problems[0])


@pytest.mark.parametrize(
    "row",
    [
        chat(QUESTION, ANSWER),
        chat({"role": "system", "content": "Be short."}, QUESTION, ANSWER, QUESTION, ANSWER),
        chat({"role": "developer", "content": "Be short."}, QUESTION, ANSWER),
        chat(QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1}),
        chat({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER),
        chat(
            QUESTION, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, tools=[{"type": "function"}]
        ),
        chat(QUESTION, ANSWER, parallel_tool_calls=False),
        b'{"prompt": "What colour?", "completion": " Blue."}\n',
        json.dumps({"prompt": [QUESTION], "completion": [ANSWER]}).encode(),
    ],
)
def test_a_row_of_a_known_shape_is_good(row: bytes) -> None:
    report = check(row)
    assert (report.rows, report.problems) == (1, [])


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.rstrip(b"\n")])
def test_windows_files_and_a_last_line_without_an_end_are_good(content: bytes) -> None:
    report = check(content)
    assert (report.rows, report.problems) == (1, [])


def test_blank_lines_are_no_rows_but_count_as_lines() -> None:
    content = b"\n" + GOOD + b"  \r\n" + GOOD
    assert check(content).rows == 2
    assert [line for line, _ in formats.read_rows(io.BytesIO(content))] == [2, 4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "line 2: it is not JSON"),
        (b"[1]\n", "line 2: Expected `object`, got `array`"),
        (GOOD.strip() + GOOD, "line 2: it is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}\n', "line 2: it is not valid UTF-8. Save"),
        (b'{"messages": "\0"}\n', "line 2: there is a NUL byte in it. Save"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}\n', "line 2: it is not JSON"),
        (b"[" * 100_000 + b"\n", "line 2: "),
        (b'{"messages": [{"role": "assistant", "content": ' + b"[" * 100_000 + b"\n", "line 2: "),
        (chat(), "line 2: no message with role 'assistant'. Add"),
        (chat(QUESTION), "line 2: no message with role 'assistant'. Add the answer that the model shall learn."),
        (chat(QUESTION, {**ANSWER, "weight": 0}), "line 2: every assistant message has weight 0"),
        (chat(QUESTION, {"role": "assistant", "content": ""}), "line 2: messages[1] is an assistant message with no"),
        (chat(QUESTION, {"role": "assistant", "content": None}), "line 2: messages[1] is an assistant message with no"),
        (
            chat({"role": "robot", "content": "x"}, ANSWER),
            "line 2: Invalid enum value 'robot' - at `$.messages[0].role`",
        ),
        (chat(QUESTION, {**ANSWER, "weight": 2}), "line 2: Invalid enum value 2 - at `$.messages[1].weight`"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "line 2: Invalid enum value 'image_url'"),
        (chat({"role": "user", "content": 3}, ANSWER), "line 2: Expected `str | array | null`, got `int`"),
        (b'{"prompt": "a", "completion": "b"}\n', "line 2: Object missing required field `messages`. Every row must"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_the_reason(line: bytes, says: str) -> None:
    assert only_problem(GOOD + line + GOOD).startswith(says)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": [QUESTION], "completion": []}, "'completion' is empty"),
        ({"prompt": [], "completion": [ANSWER]}, "'prompt' has no messages"),
        ({"prompt": [QUESTION], "completion": [QUESTION]}, "'completion' does not end with an assistant message"),
        ({"prompt": [QUESTION], "completion": " Blue."}, "'prompt' and 'completion' are of two kinds"),
        ({"prompt": "a"}, "Object missing required field `completion`"),
        ({"text": "a"}, "it has text, but neither 'messages' nor 'prompt' and 'completion'"),
    ],
)
def test_a_prompt_row_needs_both_parts_of_one_kind(row: dict[str, Any], says: str) -> None:
    assert says in only_problem(json.dumps(row).encode())


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    assert "the file has no rows" in only_problem(content)


def test_an_endless_line_is_refused_without_being_read() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def readline(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 < size <= formats.MAX_LINE_BYTES + 1
            self.asked += 1
            return b"x" * size

    file = Endless()
    report = formats.check(file)  # type: ignore[arg-type]  # of a file, `check` reads lines only
    assert "longer than 10 MiB" in str(report.problems[0])
    assert file.asked == 1


def test_twenty_problems_are_listed_and_all_are_counted() -> None:
    report = check(GOOD + b"x\n" * 50)
    assert (len(report.problems), report.problem_count) == (formats.MAX_PROBLEMS, 50)
    assert formats.summary(report).endswith("And 45 more lines.")


@pytest.mark.parametrize("name", ["x" * 1_000_000, "a\0b", "a\nb\x1b[31m"])
def test_what_a_problem_quotes_of_a_row_is_short_and_printable(name: str) -> None:
    for row in (chat({"role": name, "content": "x"}, ANSWER), json.dumps({name: 1}).encode()):
        said = only_problem(row)
        assert said.isprintable()
        assert len(said) < 1000


def test_reading_gives_typed_rows_with_their_lines() -> None:
    rows = list(formats.read_rows(io.BytesIO(GOOD)))
    assert [(line, type(row)) for line, row in rows] == [(1, ChatRow)]
    ((_, row),) = formats.read_rows(io.BytesIO(b'{"prompt": "a", "completion": "b"}'))
    assert row == PromptRow("a", "b")


def test_reading_stops_at_the_first_bad_row() -> None:
    rows = formats.read_rows(io.BytesIO(GOOD + b"x\n" + GOOD))
    next(rows)
    with pytest.raises(formats.UnusableFile, match="line 2: it is not JSON"):
        next(rows)


def test_a_template_gets_the_arguments_of_a_tool_call_as_an_object() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"box": 3}'}}
    ((_, row),) = formats.read_rows(io.BytesIO(chat(QUESTION, {"role": "assistant", "tool_calls": [call]})))
    assert isinstance(row, ChatRow)
    (given,) = row.messages[1].for_template()["tool_calls"]
    assert given["function"] == {"name": "f", "arguments": {"box": 3}}


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", '{"a": ' * 100_000])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    message = ChatMessage("assistant", tool_calls=[{"function": {"arguments": arguments}}])
    assert message.for_template()["tool_calls"] == [{"function": {"arguments": arguments}}]


@given(st.binary() | st.lists(st.sampled_from([GOOD, b"\n", b"{", b'"', b"\xff", b"\0", b"[" * 2000])).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_checking_never_raises(content: bytes) -> None:
    report = check(content)
    assert report.rows or report.problems


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "weight"]), inner)
    ),
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "tools"]), JSON))
@settings(max_examples=300, deadline=None)
def test_what_checking_passes_reading_reads(row: dict[str, Any]) -> None:
    content = json.dumps(row).encode()
    report = check(content)
    if not report.problems:
        assert len(list(formats.read_rows(io.BytesIO(content)))) == report.rows


class Repeated(io.RawIOBase):
    """A long file that is nowhere."""

    def __init__(self, line: bytes, count: int) -> None:
        self.line, self.left = line, count

    def readline(self, _size: int | None = -1) -> bytes:
        self.left -= 1
        return self.line if self.left >= 0 else b""


def test_a_long_file_is_checked_in_little_memory() -> None:
    tracemalloc.start()
    try:
        report = formats.check(Repeated(GOOD, 20_000))  # type: ignore[arg-type]  # of a file, `check` reads lines only
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.rows == 20_000
    assert peak < 1_000_000
