"""What a fine-tune file may hold, and what is said of one that holds something else."""

import csv
import io
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.files import formats
from app.files.findings import Code, Finding
from app.files.formats import FileReport
from app.files.rows import ChatMessage, ChatRow, GradedRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow
from app.files.shapes import FORMS, Shape

QUESTION = {"role": "user", "content": "What colour?"}
ANSWER = {"role": "assistant", "content": "Blue."}
GOOD = json.dumps({"messages": [QUESTION, ANSWER]}).encode() + b"\n"


def chat(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": messages, **more}).encode() + b"\n"


def check(content: bytes) -> FileReport:
    return formats.check(io.BytesIO(content))


def only_problem(content: bytes) -> str:
    report = check(content)
    assert report.errors == 1, report.findings
    return str(report.findings[0])


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
    assert (report.rows, report.findings) == (1, [])


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.rstrip(b"\n")])
def test_windows_files_and_a_last_line_without_an_end_are_good(content: bytes) -> None:
    report = check(content)
    assert (report.rows, report.findings) == (1, [])


def test_blank_lines_are_no_rows_but_count_as_lines() -> None:
    content = b"\n" + GOOD + b"  \r\n" + GOOD
    assert check(content).rows == 2
    assert [place for place, _ in formats.read_rows(io.BytesIO(content))] == [(1, 2), (2, 4)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "line 2: it is not JSON"),
        (b"[1]\n", "line 2: Expected `object`, got `array`"),
        (GOOD.strip() + GOOD, "line 2: it is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\x81"}]}\n', "line 2: it is not valid UTF-8. Save"),
        (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n', "line 2: it is not valid UTF-8, but looks like"),
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
        (b'{"prompt": "a", "completion": "b"}\n', "line 2: Object missing required field `messages`. The row has"),
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
        ({"completion": "a"}, "Object missing required field `prompt`"),
        ({"prompt": [QUESTION], "completion": [ANSWER], "tools": [{}]}, "'tools' belong to rows of 'messages'"),
        ({"prompt": "a", "completion": [ANSWER, {**ANSWER, "weight": 0}]}, "are of two kinds"),
        ({"prompt": [QUESTION], "completion": [{**ANSWER, "weight": 0}]}, "has a message with weight 0"),
    ],
)
def test_a_prompt_row_needs_both_parts_of_one_kind(row: dict[str, Any], says: str) -> None:
    assert says in only_problem(json.dumps(row).encode())


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    assert "the file has no rows" in only_problem(content)


def test_twenty_findings_are_listed_and_all_are_counted() -> None:
    report = check(GOOD + b"x\n" * 50)
    assert (len(report.findings), report.errors) == (formats.MAX_LISTED, 50)
    assert formats.summary(report).endswith("And 45 more.")


@pytest.mark.parametrize("name", ["x" * 1_000_000, "a\0b", "a\nb\x1b[31m"])
def test_what_a_finding_quotes_of_a_row_is_short_and_printable(name: str) -> None:
    for row in (chat({"role": name, "content": "x"}, ANSWER), json.dumps({name: 1}).encode()):
        said = only_problem(row)
        assert said.isprintable()
        assert len(said) < 1000


def test_reading_gives_typed_rows_with_their_lines() -> None:
    rows = list(formats.read_rows(io.BytesIO(GOOD)))
    assert [(place, type(row)) for place, row in rows] == [((1, 1), ChatRow)]
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


U, A = ChatMessage("user", "What colour?"), ChatMessage("assistant", "Blue.")
TOOL = {"name": "look", "description": "", "parameters": {}}
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}}
CHAT = ChatRow([U, A])
PREFERRED = PreferenceRow([U], [A], [ChatMessage("assistant", "Red.")])
CONVERTED: list[tuple[dict[str, Any], Shape, Row, str | None]] = [
    ({"messages": [QUESTION, ANSWER]}, Shape.MESSAGES, CHAT, None),
    ({"prompt": "a", "completion": "b"}, Shape.PROMPT_COMPLETION, PromptRow("a", "b"), None),
    ({"prompt": [QUESTION], "completion": [ANSWER]}, Shape.PROMPT_COMPLETION, PromptRow([U], [A]), None),
    ({"text": "a"}, Shape.TEXT, TextRow("a"), None),
    ({"prompt": "What colour?"}, Shape.PROMPT_ONLY, ChatRow([U]), "prompt → messages"),
    ({"prompt": [QUESTION]}, Shape.PROMPT_ONLY, ChatRow([U]), "prompt → messages"),
    ({"prompt": "a", "completion": "b", "label": False}, Shape.UNPAIRED, UnpairedRow("a", "b", False), None),
    (
        {"messages": [QUESTION, ANSWER], "label": True},
        Shape.LABELLED,
        UnpairedRow([U], [A], True),
        "a conversation and its label → prompt, completion and label",
    ),
    (
        {"instruction": "Translate.", "input": "Blau.", "output": "Blue."},
        Shape.ALPACA,
        ChatRow([ChatMessage("user", "Translate.\n\nBlau."), A]),
        "Alpaca's instruction, input and output → messages",
    ),
    (
        {"instruction": "What colour?", "input": "", "output": "Blue.", "system": "S", "history": [["q", "r"]]},
        Shape.ALPACA,
        ChatRow(
            [ChatMessage("system", "S"), ChatMessage("user", "q"), ChatMessage("assistant", "r"), U, A],
        ),
        "Alpaca's instruction, input and output → messages",
    ),
    *(
        ({question: "What colour?", answer: "Blue."}, Shape.QUESTION_ANSWER, CHAT, "question and answer → messages")
        for question, answer in (
            ("question", "answer"),
            ("Question", "Best Answer"),
            ("query", "response"),
            ("prompt", "response"),
            ("instruction", "response"),
            ("input", "output"),
        )
    ),
    (
        {"instruction": "What colour?", "context": "The sky.", "response": "Blue."},
        Shape.QUESTION_ANSWER,
        ChatRow([ChatMessage("user", "What colour?\n\nThe sky."), A]),
        "question and answer → messages",
    ),
    (
        {"prompt": "a ", "chosen": "b", "rejected": "c"},
        Shape.PREFERENCE,
        PreferenceRow("a ", "b", "c"),
        None,
    ),
    (
        {"prompt": "What colour?", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, {**ANSWER, "content": "Red."}]},
        Shape.PREFERENCE,
        PREFERRED,
        "what chosen and rejected begin with in common → prompt",
    ),
    (
        {"prompt": "What colour?", "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Red."}]},
        Shape.PREFERENCE,
        PREFERRED,
        "what chosen and rejected begin with in common → prompt",
    ),
    (
        {"chosen": "a b", "rejected": "a bc"},
        Shape.PREFERENCE,
        PreferenceRow("a ", "b", "bc"),
        "what chosen and rejected begin with in common → prompt",
    ),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is red."},
        Shape.PREFERENCE,
        PreferenceRow("The sky is", " blue.", " red."),
        "what chosen and rejected begin with in common → prompt",
    ),
    *(
        (
            {
                "input": {"messages": [QUESTION]},
                f"preferred_{spelling}": [ANSWER],
                f"non_preferred_{spelling}": [{"role": "assistant", "content": "Red."}],
            },
            Shape.OPENAI_PREFERENCE,
            PREFERRED,
            "input, preferred and non-preferred output → prompt, chosen and rejected",
        )
        for spelling in ("output", "completion")
    ),
    (
        {
            "conversations": [{"from": "human", "value": "What colour?"}],
            "chosen": {"from": "gpt", "value": "Blue."},
            "rejected": {"from": "gpt", "value": "Red."},
        },
        Shape.SHAREGPT_PREFERENCE,
        PREFERRED,
        "ShareGPT's conversations, chosen and rejected → prompt, chosen and rejected",
    ),
    *(
        (conversation, Shape.SHAREGPT, CHAT, "ShareGPT's conversations → messages")
        for conversation in (
            {"conversations": [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "Blue."}]},
            {"messages": [{"from": "user", "value": "What colour?"}, {"from": "assistant", "value": "Blue."}]},
            {"conversations": [QUESTION, ANSWER]},
        )
    ),
    (
        {
            "system": "S",
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": "What colour?"},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
                {"from": "observation", "value": "blue"},
                {"from": "gpt", "value": "Blue."},
            ],
        },
        Shape.SHAREGPT,
        ChatRow(
            [
                ChatMessage("system", "S"),
                U,
                ChatMessage("assistant", tool_calls=[{"id": "call_1", **CALL}]),
                ChatMessage("tool", "blue", tool_call_id="call_1"),
                A,
            ],
            tools=[{"type": "function", "function": TOOL}],
        ),
        "ShareGPT's conversations → messages",
    ),
    (
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "function_call": {"name": "look", "arguments": '{"at":"sky"}'}},
                {"role": "function", "name": "look", "content": "blue"},
                ANSWER,
            ],
            "functions": [TOOL],
        },
        Shape.MESSAGES,
        ChatRow(
            [
                U,
                ChatMessage("assistant", tool_calls=[{"id": "call_1", **CALL}]),
                ChatMessage("tool", "blue", name="look", tool_call_id="call_1"),
                A,
            ],
            tools=[{"type": "function", "function": TOOL}],
        ),
        "functions and function_call → tools and tool_calls",
    ),
]


@pytest.mark.parametrize(("row", "shape", "canonical", "conversion"), CONVERTED)
def test_a_shape_is_known_by_its_fields_and_converted_as_the_report_shows(
    row: dict[str, Any], shape: Shape, canonical: Row, conversion: str | None
) -> None:
    reading = formats.read(io.BytesIO(json.dumps(row).encode()))
    assert list(reading) == [((1, 1), canonical)]
    assert (reading.shape, reading.ignored_fields) == (shape, {})
    if conversion is None:
        assert reading.conversion is None
    else:
        assert reading.conversion is not None
        assert (reading.conversion.message, reading.conversion.before) == (conversion, row)
        assert reading.conversion.after == msgspec.to_builtins(canonical)


def test_several_calls_and_their_observations_keep_their_order() -> None:
    calls = '[{"name": "look", "arguments": {}}, {"name": "hear", "arguments": {}}]'
    turns = [("user", "?"), ("function_call", calls), ("observation", "1"), ("observation", "2"), ("gpt", "!")]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    ((_, made),) = formats.read_rows(io.BytesIO(json.dumps(row).encode()))
    assert isinstance(made, ChatRow)
    assert made.messages[1].called == ["look", "hear"]
    assert [call["id"] for call in made.messages[1].tool_calls or []] == ["call_1", "call_2"]
    assert [message.tool_call_id for message in made.messages[2:4]] == ["call_1", "call_2"]


def table(columns: list[str], *rows: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode()


def test_a_table_of_text_has_json_where_the_shape_has_lists_and_truth_values() -> None:
    messages = json.dumps([QUESTION, ANSWER])
    assert one(table(["messages"], [messages])) == CHAT
    assert one(table(["prompt", "completion"], [json.dumps([QUESTION]), json.dumps([ANSWER])])) == PromptRow([U], [A])
    for cell, label in (("true", True), ("False", False), ("1", True), ("0", False), ("yes", True), ("No", False)):
        made = one(table(["prompt", "completion", "label"], ["[1, 2]", "b", cell]))
        assert made == UnpairedRow("[1, 2]", "b", label)
    assert one(table(["instruction", "input", "output"], ["What colour?", "", "Blue."])) == CHAT


def one(content: bytes) -> Row:
    ((_, row),) = formats.read_rows(io.BytesIO(content))
    return row


def test_fields_that_nothing_reads_are_counted_in_every_row() -> None:
    plain = {"messages": [QUESTION, ANSWER]}
    rows = [
        plain,
        {**plain, "id": 1, "empty": None},
        plain,
        {"messages": [QUESTION, {**ANSWER, "refusal": "x"}], "id": 2},
    ]
    reading = formats.read(io.BytesIO(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    assert [item if isinstance(item, Finding) else item[1] for item in reading] == [CHAT] * 4
    assert reading.ignored_fields == {"id": 2, "messages[].refusal": 1}
    many = {**plain, **{f"f{number}": 1 for number in range(60)}}
    reading = formats.read(io.BytesIO(json.dumps(many).encode()))
    assert len(list(reading)) == 1
    assert len(reading.ignored_fields) == formats.MAX_IGNORED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "label": False}),
        ({"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION, ANSWER], "label": False}),
        ({"prompt": "a"}, {"prompt": "a", "completion": "b"}),
        ({"text": "a"}, {"text": "a", "messages": [QUESTION, ANSWER]}),
        ({"question": "a", "answer": "b"}, {"query": "a", "response": "b"}),
        ({"messages": [QUESTION, ANSWER]}, {"messages": [{"from": "human", "value": "x"}]}),
    ],
)
def test_a_row_of_another_shape_is_not_trained_on_for_the_fields_that_they_share(first: Any, second: Any) -> None:
    said = only_problem(json.dumps(first).encode() + b"\n" + json.dumps(second).encode())
    assert "line 2: " in said
    assert "Every row must look like" in said


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"quest": 1, "mesages": []}, "Did you mean 'messages' with 'mesages'?"),
        ({"role": "user", "content": "a"}, "It looks like one message"),
        ({"data": [{"text": "a"}]}, "If the rows are in 'data', send that array by itself."),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "'question' beside them. Rename it to 'prompt'."),
        ({}, "it has nothing, but"),
    ],
)
def test_a_shape_that_nobody_knows_is_refused_with_the_nearest_remedy(row: dict[str, Any], says: str) -> None:
    assert says in only_problem(json.dumps(row).encode())


@pytest.mark.parametrize("method", formats.TAKES)
def test_a_method_says_what_it_saw_what_it_wants_and_which_other_takes_it(method: str) -> None:
    for shape in Shape:
        said = formats.mismatch(shape, method)
        assert (said is None) == (shape in formats.TAKES[method])
        if said is not None:
            others = [other for other, taken in formats.TAKES.items() if shape in taken]
            assert others
            assert all(f"'{other}'" in said for other in others)
            assert FORMS[shape].example in said


def test_a_file_of_the_wrong_shape_for_its_method_is_refused_once() -> None:
    preferences = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3
    report = formats.check(io.BytesIO(preferences), "supervised")
    assert [finding.code for finding in report.findings] == [Code.WRONG_METHOD]
    assert "with method 'dpo', 'orpo', 'simpo' or 'reward'" in report.findings[0].message
    assert report.rows == 3
    assert formats.check(io.BytesIO(preferences), "dpo").errors == 0
    with pytest.raises(formats.UnusableFile, match="does not train on"):
        list(formats.read_rows(io.BytesIO(preferences), "supervised"))


def test_prompts_are_taken_while_no_method_is_named_until_a_row_is_answered() -> None:
    asked = {"messages": [QUESTION], "label": "blue"}
    open_, answered = json.dumps(asked).encode() + b"\n", chat(QUESTION, ANSWER)
    assert formats.check(io.BytesIO(open_ + open_ + answered)).rows == 3
    assert formats.check(io.BytesIO(answered + chat(QUESTION))).bad_rows == 1
    assert formats.check(io.BytesIO(chat(QUESTION)), "supervised").bad_rows == 1


def test_all_fields_of_a_prompt_are_its_graders() -> None:
    rows = [{"prompt": "What colour?", "answer": "Blue.", "completion": "c"}]
    ((_, row),) = formats.read_rows(io.BytesIO(json.dumps(rows[0]).encode()), "reinforcement")
    assert row == GradedRow([U], rows[0])
    read = formats.read(io.BytesIO(chat(QUESTION, ANSWER)), "reinforcement")
    [item] = read
    assert not isinstance(item, Finding)
    assert isinstance(item[1], GradedRow)
    assert item[1].left_out is True
    assert read.ignored_fields == {}


def test_a_conversation_that_ends_with_a_question_is_a_prompt_for_reinforcement_only() -> None:
    assert formats.check(io.BytesIO(chat(QUESTION)), "reinforcement").rows == 1
    assert formats.check(io.BytesIO(chat(QUESTION)), "supervised").counts == {Code.NO_ANSWER: 1}


@given(st.binary() | st.lists(st.sampled_from([GOOD, b"\n", b"{", b'"', b"\xff", b"\0", b"[" * 2000])).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_checking_never_raises(content: bytes) -> None:
    report = check(content)
    assert report.rows or report.findings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "weight"]), inner)
    ),
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "tools"]), JSON))
@settings(max_examples=60, deadline=None)
def test_what_checking_passes_reading_reads(row: dict[str, Any]) -> None:
    content = json.dumps(row).encode()
    report = check(content)
    if not report.findings:
        assert len(list(formats.read_rows(io.BytesIO(content)))) == report.rows


def test_after_an_error_a_long_file_is_looked_at_only_as_long_as_somebody_waits() -> None:
    content = GOOD + b"x\n" + GOOD * 400_000

    began = time.perf_counter()
    report = formats.check(io.BytesIO(content), patience=0.1)
    took = time.perf_counter() - began

    assert report.broken_off_after is not None
    assert report.broken_off_after < 400_002
    assert took < 5
    assert formats.summary(report).startswith("line 2: it is not JSON")
    assert f"Rows after the {report.broken_off_after}th were not looked at." in formats.summary(report)
    assert formats.check(io.BytesIO(GOOD * 3), patience=0.0).broken_off_after is None
