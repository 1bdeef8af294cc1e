"""Files that are wrong in all the ways that files are: each has exactly the findings it should, and no row is lost."""

import codecs
import csv
import gzip
import io
import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.files import formats
from app.files.containers import MAX_ROW_BYTES
from app.files.findings import Finding
from app.files.formats import Reading

UNPACKED = 32 * 1024 * 1024
"""What a file may unpack to in these tests."""

U = {"role": "user", "content": "What colour?"}
A = {"role": "assistant", "content": "Blue."}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CHAT: dict[str, Any] = {"messages": [U, A]}
PROMPT = {"prompt": "What colour?", "completion": " Blue."}
PAIR = {"prompt": "What colour?", "chosen": " Blue.", "rejected": " Red."}
JUDGED = {"prompt": "What colour?", "completion": " Blue.", "label": True}
TEXT = {"text": "The sky is blue."}
ALPACA = {"instruction": "Name the colour.", "input": "The sky", "output": "Blue."}
TURNS = [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "Blue."}]
SHAREGPT = {"conversations": TURNS}
QUESTION = {"question": "What colour?", "answer": "Blue."}
OPENAI_PAIR = {
    "input": {"messages": [U]},
    "preferred_output": [A],
    "non_preferred_output": [{"role": "assistant", "content": "Red."}],
}
PROMPT_ONLY = {"prompt": "What colour?"}


def lines(*rows: Any) -> bytes:
    """JSON lines; what is bytes already is a line as it is."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def array(*rows: Any, indent: int | None = None) -> bytes:
    """A JSON array; what is bytes already is an element as it is."""
    texts = [row if isinstance(row, bytes) else json.dumps(row, indent=indent).encode() for row in rows]
    return b"[\n" + b",\n".join(texts) + b"\n]\n"


def table(*records: list[str], delimiter: str = ",") -> bytes:
    """CSV; the first record is the header."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(records)
    return text.getvalue().encode()


def parquet(*rows: dict[str, Any], schema: pa.Schema | None = None, **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), target, **options)
    return target.getvalue()


def gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def changed(content: bytes, start: int, new: bytes) -> bytes:
    """With other bytes at a place; from the end where it is negative."""
    start = start % len(content)
    return content[:start] + new + content[start + len(new) :]


def with_(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**row, **more}


class Broken(NamedTuple):
    """A file, what is wrong with it, and what of it is good all the same."""

    name: str
    content: bytes
    findings: list[tuple[str, int | None, int | None]]
    """Code, row and line of each, in their order."""
    says: str
    """A word of the first one's message."""
    good: int = 2
    """Rows."""
    complete: bool = True


def middle(name: str, row: Any, code: str, says: str, *, good: Any = CHAT) -> Broken:
    """JSON lines with one bad row between two good ones."""
    return Broken(name, lines(good, row, good), [(code, 2, 2)], says)


def whole(name: str, content: bytes, code: str, says: str) -> Broken:
    """A file of which nothing can be read."""
    return Broken(name, content, [(code, None, None)], says, good=0, complete=False)


LONG = b'{"messages": "' + b"x" * MAX_ROW_BYTES + b'"}'
SQUARE = b"[" * 100_000
PRETTY = json.dumps(CHAT, indent=2).encode()
ROW = json.dumps(CHAT).encode()
NAN = b'{"prompt": NaN, "completion": "b"}'
NUL = b'{"prompt": "\0", "completion": "b"}'
LATIN = b'{"prompt": "caf\xe9", "completion": "b"}'
PARTS = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
EMPTY = {"role": "assistant", "content": ""}

BROKEN: list[Broken] = [
    # No rows, and files that are something else altogether.
    Broken("empty", b"", [("no_rows", 1, 1)], "no rows", good=0),
    Broken("blank lines", b"\n \r\n\t\n", [("no_rows", 1, 1)], "no rows", good=0),
    Broken("a byte order mark alone", codecs.BOM_UTF8, [("no_rows", 1, 1)], "no rows", good=0),
    whole("UTF-16", ROW.decode().encode("utf-16"), "not_text", "UTF-16"),
    whole("UTF-16 without a mark", ROW.decode().encode("utf-16-le"), "not_text", "UTF-16"),
    whole("UTF-16 in gzip", gz(ROW.decode().encode("utf-16")), "not_text", "UTF-16"),
    whole("UTF-32", ROW.decode().encode("utf-32"), "not_text", "UTF-32"),
    whole("HTML", b"<!DOCTYPE html><html><body>502</body></html>", "not_text", "HTML"),
    whole("PDF", b"%PDF-1.7\n1 0 obj", "not_text", "PDF"),
    whole("a sheet of Excel", b"PK\x03\x04\x14\0\x06\0", "not_text", ".xlsx"),
    whole("bzip2", b"BZh91AY&SY", "not_text", "bzip2"),
    whole("a picture", b"\x89PNG\r\n\x1a\n", "not_text", "picture"),
    whole("a pickle", b"\x80\x04\x95\x10\0", "not_text", "pickle"),
    whole("gzip in gzip", gz(gz(lines(CHAT))), "not_text", "twice"),
    # JSON lines.
    middle("words", b"hello", "not_json", "Write one JSON object a line"),
    middle("half a row", ROW[:40], "not_json", "truncated"),
    middle("single quotes", str(CHAT).encode(), "not_json", "json.dumps"),
    middle("NaN", NAN, "not_json", "NaN and Infinity are no JSON", good=PROMPT),
    middle("True", b'{"prompt": "a", "completion": "b", "label": True}', "not_json", "true, false", good=JUDGED),
    middle("two rows in a line", ROW + ROW, "not_json", "several objects"),
    middle("a comment", b"// the second row", "not_json", "Write one JSON object a line"),
    middle("a comma at the end", ROW + b",", "not_json", "Remove the comma"),
    middle("half of a surrogate pair", rb'{"prompt": "\ud800", "completion": "b"}', "not_json", "surrogate"),
    middle("an escape that is none", rb'{"prompt": "\x", "completion": "b"}', "not_json", "escape"),
    middle("deeper than Python goes", SQUARE, "not_json", "recursion"),
    middle("a NUL byte", NUL, "not_text", "NUL", good=PROMPT),
    middle("Latin-1", LATIN, "not_text", "Latin-1", good=PROMPT),
    middle("bytes of no encoding", b'{"prompt": "\x81\x8d", "completion": "b"}', "not_text", "UTF-8", good=PROMPT),
    Broken("an endless line", lines(CHAT, LONG, CHAT), [("too_large", 2, 2)], "10 MiB", good=1, complete=False),
    Broken("old line ends", ROW + b"\r" + ROW + b"\r", [("not_json", 1, 1)], "carriage return", good=0),
    Broken("a header", lines(b"# rows", CHAT, CHAT), [("not_json", 1, 1)], "not JSON"),
    Broken("after blank lines", b"\n\r\n" + lines(CHAT, b"x", CHAT), [("not_json", 2, 4)], "not JSON"),
    Broken("an object on many lines", PRETTY, [("not_json", 1, 1)], "several lines", good=0, complete=False),
    Broken(
        "rows within an object",
        json.dumps({"data": [CHAT, CHAT]}, indent=1).encode(),
        [("not_json", 1, 1)],
        "in 'data'",
        good=0,
        complete=False,
    ),
    Broken("rows within a line's object", lines({"data": [CHAT]}), [("wrong_shape", 1, 1)], "in 'data'", good=0),
    # A JSON array.
    Broken("an array of nothing", b"[ ]", [("no_rows", 1, 1)], "no rows", good=0),
    Broken("a bracket", b"[", [("not_json", 1, 1)], "does not end", good=0, complete=False),
    Broken("an array cut between rows", array(CHAT, CHAT)[:-3], [("not_json", 3, 3)], "does not end", complete=False),
    Broken("an array cut in a row", array(CHAT, CHAT, CHAT)[:-30], [("not_json", 3, 4)], "sent whole", complete=False),
    Broken("a comma too many", b"[" + ROW + b"," + ROW + b"\n,]", [("not_json", 3, 2)], "Remove it", complete=False),
    Broken("a comma too few", b"[" + ROW + b"\n" + ROW + b"]", [("not_json", 2, 2)], "no comma", 1, complete=False),
    Broken("two commas", b"[" + ROW + b",\n,\n" + ROW + b"]", [("not_json", 2, 2)], "not JSON", 1, complete=False),
    Broken("two arrays", array(CHAT, CHAT) + array(CHAT), [("not_json", 3, 5)], "all rows in one", complete=False),
    Broken(
        "single quotes in an array", array(CHAT, b"{'a': 1}"), [("not_json", 2, 3)], "json.dumps", 1, complete=False
    ),
    Broken("an endless element", array(CHAT, LONG, CHAT), [("too_large", 2, 3)], "10 MiB", 1, complete=False),
    Broken("a deep element", array(CHAT, SQUARE), [("not_json", 2, 3)], "recursion", 1, complete=False),
    Broken("a number in an array", array(CHAT, 3, CHAT), [("wrong_shape", 2, 3)], "Expected `object`"),
    Broken("arrays in an array", array([CHAT], [CHAT]), [("wrong_shape", n, n + 1) for n in (1, 2)], "got `array`", 0),
    Broken("NaN in an array", array(PROMPT, NAN, PROMPT), [("not_json", 2, 3)], "NaN"),
    Broken("NUL in an array", array(PROMPT, NUL, PROMPT), [("not_text", 2, 3)], "NUL"),
    Broken("Latin-1 in an array", array(PROMPT, LATIN, PROMPT), [("not_text", 2, 3)], "Latin-1"),
    Broken("after rows of many lines", array(CHAT, CHAT, {}, indent=1), [("wrong_shape", 3, 26)], "has nothing"),
    # CSV.
    Broken("a header without rows", b"prompt,completion\n", [("no_rows", 1, 1)], "no rows", good=0),
    Broken("no header", b"Blue?,Yes\nRed?,No\n", [("wrong_shape", 1, 2)], "it has Blue?, Yes", good=0),
    Broken("a column twice", b"prompt,prompt\na,b\n", [("not_json", 1, 1)], "twice", good=0, complete=False),
    Broken(
        "a cell too many and one too few",
        table(["prompt", "completion"], ["a", "b"], ["a", "b", "c"], ["a"], ["a", "b"]),
        [("not_json", 2, 3), ("not_json", 3, 4)],
        "3 cells",
    ),
    Broken(
        "ragged after cells of two lines",
        b'prompt,completion\n"a\nb",c\nd\n"e\nf",g\n',
        [("not_json", 2, 4)],
        "1 cells",
    ),
    Broken("a bare quote", b'prompt,completion\na,b\n"a"x,b\na,b\n', [("not_json", 2, 3)], "not CSV"),
    Broken(
        "a quote that does not end",
        b'prompt,completion\na,b\n"a,b\na,b\n',
        [("not_json", 2, 3)],
        "up to line 4",
        good=1,
        complete=False,
    ),
    Broken(
        "a quoted cell without end",
        b'prompt,completion\na,b\n"' + (b"x" * 1023 + b"\n") * (MAX_ROW_BYTES // 1024 + 1),
        [("too_large", 2, 3)],
        "10 MiB",
        good=1,
        complete=False,
    ),
    Broken("NUL in a table", b"prompt,completion\na,b\na,\0\na,b\n", [("not_text", 2, 3)], "NUL"),
    Broken("Latin-1 in a table", b"prompt;completion\na;b\ncaf\xe9;b\na;b\n", [("not_text", 2, 3)], "Latin-1"),
    Broken(
        "a cell of no truth", b"prompt,completion,label\na,b,1\na,b,maybe\na,b,no\n", [("wrong_shape", 2, 3)], "bool"
    ),
    Broken(
        "a tab too many",
        table(["text", "n"], ["a", "1"], ["", "2"], ["b", "3"], delimiter="\t"),
        [("no_answer", 2, 3)],
        "empty",
    ),
    Broken(
        "lists as Python prints them",
        table(["messages"], [json.dumps([U, A])], [str([U, A])], [json.dumps([U, A])]),
        [("not_json", 2, 3)],
        "single quotes",
    ),
    # Parquet.
    Broken("a table cut off", parquet(CHAT)[:-20], [("not_text", 1, None)], "damaged", good=0, complete=False),
    Broken("a table of four bytes", b"PAR1", [("not_text", 1, None)], "damaged", good=0, complete=False),
    Broken(
        "a page destroyed",
        changed(parquet(*[with_(TEXT, text=f"{n} " * 50) for n in range(99)]), 10, b"\xff" * 200),
        [("not_text", 1, None)],
        "damaged",
        good=0,
        complete=False,
    ),
    Broken(
        "a table without rows", parquet(schema=pa.schema({"text": pa.string()})), [("no_rows", 1, 1)], "no rows", good=0
    ),
    Broken("a null", parquet(PROMPT, with_(PROMPT, completion=None), PROMPT), [("wrong_shape", 2, None)], "completion"),
    Broken("bytes for text", parquet({"text": b"a"}), [("wrong_shape", 1, None)], "got `bytes`", good=0),
    Broken("a large row", parquet(TEXT, {"text": "x" * MAX_ROW_BYTES}, TEXT), [("too_large", 2, None)], "10 MiB"),
    Broken(
        "a small table that unpacks to a large one",
        parquet(*[{"text": "x" * MAX_ROW_BYTES}] * 4, use_dictionary=False, compression="zstd"),
        [("too_large", None, None)],
        "unpacks to more",
        good=0,
        complete=False,
    ),
    # gzip.
    Broken("gzip of nothing", gz(b""), [("no_rows", 1, 1)], "no rows", good=0),
    Broken("gzip cut", gz(lines(CHAT, CHAT))[:-10], [("not_text", 2, 2)], "ends early", good=1, complete=False),
    Broken("gzip cut in its header", gz(b"")[:5], [("not_text", 1, 1)], "ends early", good=0, complete=False),
    Broken("gzip: an array cut", gz(array(TEXT, PROMPT))[:-16], [("not_text", 2, 3)], "ends early", 1, complete=False),
    Broken(
        "gzip of CSV cut",
        gz(b"prompt,completion\na,b\nc,d\n")[:-11],
        [("not_text", 2, 3)],
        "ends early",
        1,
        complete=False,
    ),
    Broken("gzip of Parquet cut", gz(parquet(CHAT))[:-12], [("not_text", None, None)], "ends early", 0, complete=False),
    Broken(
        "a wrong checksum", changed(gz(lines(CHAT, CHAT)), -8, b"\0\0\0\0"), [("not_text", 3, 3)], "CRC", complete=False
    ),
    Broken(
        "a method that is none", changed(gz(lines(CHAT)), 2, b"\7"), [("not_text", 1, 1)], "damaged", 0, complete=False
    ),
    Broken("more after the archive", gz(lines(CHAT, CHAT)) + b"more", [("not_text", None, None)], "after the gzip"),
    Broken(
        "a second member cut",
        gz(lines(CHAT, CHAT)) + gz(lines(CHAT))[:-40],
        [("not_text", 3, 3)],
        "early",
        complete=False,
    ),
    Broken(
        "a bomb", gz(lines({"text": "x" * 1024**2}) * 40), [("too_large", 32, 32)], "unpacks to", 31, complete=False
    ),
    # Shapes.
    middle("null", None, "wrong_shape", "got `null`"),
    middle("a text", "hello", "wrong_shape", "got `str`"),
    middle("nothing", {}, "wrong_shape", "The row has nothing"),
    middle("no messages", {"messages": []}, "no_answer", "role 'assistant'"),
    middle("messages that are text", {"messages": "Hi"}, "wrong_shape", "got `str`"),
    middle("no answer", {"messages": [U]}, "no_answer", "role 'assistant'"),
    middle("an empty answer", {"messages": [U, EMPTY]}, "no_answer", "messages[1]"),
    middle("answers of no weight", {"messages": [U, with_(A, weight=0)]}, "no_answer", "weight 0"),
    middle("a weight of two", {"messages": [U, with_(A, weight=2)]}, "wrong_shape", "$.messages[1].weight"),
    middle("an unknown role", {"messages": [with_(U, role="robot"), A]}, "wrong_shape", "'robot'"),
    middle("no role", {"messages": [{"content": "Hi"}, A]}, "wrong_shape", "`role`"),
    middle("a picture in a message", {"messages": [PARTS, A]}, "wrong_shape", "image_url"),
    middle("content that is a number", {"messages": [with_(U, content=3), A]}, "wrong_shape", "got `int`"),
    middle("a prompt among chats", PROMPT, "wrong_shape", "began with chat rows"),
    middle("a chat among prompts", CHAT, "wrong_shape", "began with prompts", good=PROMPT),
    middle(
        "an old call without a name",
        {"messages": [U, {"role": "assistant", "function_call": {}}]},
        "wrong_shape",
        "'name'",
    ),
    middle("an empty completion", with_(PROMPT, completion=""), "no_answer", "empty", good=PROMPT),
    middle("a prompt of another kind", with_(PROMPT, prompt=[U]), "wrong_shape", "two kinds", good=PROMPT),
    middle("a question for an answer", {"prompt": [U], "completion": [U]}, "no_answer", "end with", good=PROMPT),
    middle("a text that is none", {"text": ""}, "no_answer", "empty", good=TEXT),
    middle("a prompt that is none", {"prompt": ""}, "no_answer", "empty", good=PROMPT_ONLY),
    middle("equal answers", with_(PAIR, rejected=PAIR["chosen"]), "no_answer", "equal", good=PAIR),
    middle("one answer", {"prompt": "a", "chosen": "b"}, "wrong_shape", "rejected", good=PAIR),
    middle("nothing in common", {"chosen": "b", "rejected": "c"}, "wrong_shape", "nothing in common", good=PAIR),
    middle(
        "equal answers in OpenAI's form",
        with_(OPENAI_PAIR, non_preferred_output=[A]),
        "no_answer",
        "equal",
        good=OPENAI_PAIR,
    ),
    middle(
        "no input", {"preferred_output": [A], "non_preferred_output": [A]}, "wrong_shape", "input", good=OPENAI_PAIR
    ),
    middle("a label that is text", with_(JUDGED, label="good"), "wrong_shape", "bool", good=JUDGED),
    middle("no output", with_(ALPACA, output=""), "no_answer", "'output'", good=ALPACA),
    middle("a history of threes", with_(ALPACA, history=[["a", "b", "c"]]), "wrong_shape", "history", good=ALPACA),
    middle(
        "an unknown speaker",
        {"conversations": [with_(TURNS[0], **{"from": "cat"})]},
        "wrong_shape",
        "'cat'",
        good=SHAREGPT,
    ),
    middle("no turn of the model", {"conversations": TURNS[:1]}, "no_answer", "'gpt'", good=SHAREGPT),
    middle(
        "a call that is words",
        {"conversations": [*TURNS, {"from": "function_call", "value": "x"}]},
        "wrong_shape",
        "function call",
        good=SHAREGPT,
    ),
    middle("tools that are words", with_(SHAREGPT, tools="look"), "wrong_shape", "'tools'", good=SHAREGPT),
    middle("no answer to the question", with_(QUESTION, answer=""), "no_answer", "'answer'", good=QUESTION),
    Broken("a message a line", lines(U, A), [("wrong_shape", 1, 1), ("wrong_shape", 2, 2)], "one message", good=0),
    Broken("a word misspelt", lines({"mesages": [U, A]}), [("wrong_shape", 1, 1)], "'messages' with 'mesages'", good=0),
    Broken(
        "columns for rows", lines({"prompt": ["a"], "completion": ["b"]}), [("wrong_shape", 1, 1)], "prompt[0]", good=0
    ),
]


def read(content: bytes, method: str | None = None) -> tuple[Reading, int, list[Finding]]:
    """The reading at its end, how many rows are good, and what was found; and that no row is missing or told twice."""
    reading = formats.read(io.BytesIO(content), method, max_unpacked_bytes=UNPACKED)
    good, findings, rows = 0, list[Finding](), list[int]()
    for item in reading:
        if isinstance(item, Finding):
            findings.append(item)
            rows += [item.row] if item.row is not None else []
        else:
            good += 1
            rows.append(item[0].row)
    assert rows == list(range(1, len(rows) + 1))
    return reading, good, findings


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.name for broken in BROKEN])
def test_a_broken_file_has_its_findings_and_no_others(broken: Broken) -> None:
    reading, good, findings = read(broken.content)
    assert [(finding.code, finding.row, finding.line) for finding in findings] == broken.findings
    assert broken.says in findings[0].message
    assert (good, reading.complete) == (broken.good, broken.complete)


def test_the_corpus_is_large_and_its_files_are_all_different() -> None:
    assert len({broken.content for broken in BROKEN}) == len({broken.name for broken in BROKEN}) == len(BROKEN) >= 60


GOOD = [CHAT, PROMPT, PAIR, JUDGED, TEXT, ALPACA, SHAREGPT, QUESTION, OPENAI_PAIR, PROMPT_ONLY]
ODD: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)
WORDS = [
    b"\n",
    b"\r",
    b'"',
    b"'",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\0",
    b"\xff",
    b"\xe9",
    b"\\",
    b"NaN",
    b"\x1f\x8b",
    b"PAR1",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file in any container, perhaps with a field of another type, then cut, flipped or added to."""
    rows = [dict(draw(st.sampled_from(GOOD)))] * draw(st.integers(1, 4))
    if draw(st.booleans()):
        rows[-1] = with_(rows[-1], **{draw(st.sampled_from(sorted(rows[-1]))): draw(ODD)})
    pack = draw(st.sampled_from([lines, array, as_table, as_parquet]))
    content = pack(*rows)
    packed = draw(st.booleans())
    if draw(st.booleans()):
        content = spoilt(draw, content)
    if packed:
        content = gz(content)
    return spoilt(draw, content) if packed and draw(st.booleans()) else content


def as_table(*rows: dict[str, Any]) -> bytes:
    columns = sorted({name for row in rows for name in row})
    cells = (
        [row[name] if isinstance(row.get(name), str) else json.dumps(row.get(name)) for name in columns] for row in rows
    )
    return table(columns, *cells)


def as_parquet(*rows: dict[str, Any]) -> bytes:
    try:
        return parquet(*rows)
    except (pa.ArrowException, OverflowError):  # a column of several types
        return lines(*rows)


def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    match draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat"])):
        case "cut":
            return content[:at]
        case "flip":
            return changed(content, at, bytes([content[at] ^ draw(st.integers(1, 255))])) if content else content
        case "insert":
            return content[:at] + draw(st.sampled_from(WORDS)) + content[at:]
        case "remove":
            return content[:at] + content[at + draw(st.integers(1, 20)) :]
    return content + content[at:]


@given(damaged(), st.sampled_from([None, *formats.TAKES]))
@settings(max_examples=500, deadline=None)
def test_whatever_is_done_to_a_file_its_rows_are_all_accounted_for(content: bytes, method: str | None) -> None:
    _, good, findings = read(content, method)
    assert good or findings
    assert all(str(finding).isprintable() for finding in findings)
    report = formats.check(io.BytesIO(content), method, max_unpacked_bytes=UNPACKED)
    assert (report.rows, report.counts.total()) == (good, len(findings))
