"""Rows by their content: which are the same, and which are held out."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.files.digests import DIGEST_BYTES, held_out, row_digest
from app.files.rows import ChatMessage, ChatRow, PreferenceRow, PromptRow, Row, TextPart, TextRow, UnpairedRow

USER = ChatMessage("user", "Welche Farbe? 🎨")
ANSWER = ChatMessage("assistant", "Blau.\n")
CHAT = ChatRow([USER, ANSWER])
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {"a": 1.5, "b": [None, True]}}}


def calling(arguments: Any) -> ChatMessage:
    return ChatMessage("assistant", tool_calls=[{"id": "1", "function": {"name": "look", "arguments": arguments}}])


# Never to change: what was held out of an earlier job would be trained on by the next.
PINNED: list[tuple[Row, str]] = [
    (CHAT, "77654a5dec7c6fc7142223763a8f6e1a"),
    (
        ChatRow([ChatMessage("system", "Kurz."), USER, ChatMessage("assistant", "Blau.\n", weight=0), USER, ANSWER]),
        "7f8b9051bfa83564899b6019861f2ee3",
    ),
    (
        ChatRow([USER, calling('{"b": 1, "a": "ä"}'), ChatMessage("tool", "4", tool_call_id="1"), ANSWER], [TOOL]),
        "8a9301f0ea4524a52cde386822fbfd4f",
    ),
    (PromptRow("What colour?", " Blue."), "32379bfb77d970b83e34082b9d4b2cbc"),
    (PromptRow([USER], [ANSWER]), "b62bcb3942336046c43550697c258c3d"),
    (TextRow('A\tplain "text" / with \\ and \x7f'), "56aa094f2937d7deac57ee15f3b39a19"),
    (PreferenceRow("What colour?", "Blue.", "No."), "da1019619402bc6d098e52bba78cfd89"),
    (UnpairedRow([USER], [ANSWER], label=True), "03214211c8c6bb5736478eb4fd7d32c6"),
]


@pytest.mark.parametrize(("row", "digest"), PINNED)
def test_a_digest_never_changes(row: Row, digest: str) -> None:
    assert row_digest(row).hex() == digest


def test_rows_that_differ_in_what_is_learnt_differ_in_their_digests() -> None:
    rows: list[Row] = [row for row, _ in PINNED]
    rows += [
        ChatRow([USER, ChatMessage("assistant", "Blau.")]),
        ChatRow([USER, ANSWER], [TOOL]),
        ChatRow([ChatMessage("user", USER.text, name="Anna"), ANSWER]),
        ChatRow([USER, ANSWER, USER, ANSWER]),
        ChatRow([ChatMessage("system", "Kurz."), USER, ANSWER, USER, ANSWER]),
        PromptRow("What colour? ", "Blue."),
        PreferenceRow("What colour?", "No.", "Blue."),
        UnpairedRow([USER], [ANSWER], label=False),
        TextRow("What colour? Blue."),
    ]
    assert len({row_digest(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CHAT, ChatRow([USER, ChatMessage("assistant", "Blau.\n", weight=1)])),
        (CHAT, ChatRow([ChatMessage("user", [TextPart("text", "Welche Farbe?"), TextPart("text", " 🎨")]), ANSWER])),
        (CHAT, ChatRow([USER, ANSWER], parallel_tool_calls=False)),
        (ChatRow([USER, calling('{"a": 1, "b": 2}')]), ChatRow([USER, calling({"b": 2, "a": 1})])),
        (ChatRow([USER, ANSWER], [{"a": 1, "b": 2}]), ChatRow([USER, ANSWER], [{"b": 2, "a": 1}])),
    ],
)
def test_rows_that_are_learnt_alike_have_one_digest(one: Row, other: Row) -> None:
    assert row_digest(one) == row_digest(other)


def test_the_order_of_a_files_keys_is_none_of_a_row() -> None:
    lines = [
        b'{"messages": [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}], "tools": null}',
        b'{"messages":[{"content":"\\u0061","role":"user","name":null},{"role":"assistant","content":"b"}]}',
    ]
    one, other = [msgspec.json.decode(line, type=ChatRow) for line in lines]
    assert row_digest(one) == row_digest(other)


DIGESTS = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
SHARES = st.floats(0, 1)


@given(DIGESTS, SHARES, SHARES)
def test_what_a_smaller_share_holds_out_a_larger_one_does_too(digest: bytes, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    assert held_out(digest, larger) or not held_out(digest, smaller)


@given(DIGESTS)
def test_a_share_of_nothing_holds_out_none_and_of_all_each(digest: bytes) -> None:
    assert not held_out(digest, 0.0)
    assert held_out(digest, 1.0)


@given(st.lists(st.text()), st.lists(st.text()), SHARES)
def test_rows_that_are_added_change_no_others_side(rows: list[str], more: list[str], share: float) -> None:
    def kept(texts: list[str]) -> set[str]:
        return {text for text in texts if held_out(row_digest(TextRow(text)), share)}

    assert kept(rows + more) & set(rows) == kept(rows)


def test_which_rows_are_held_out_never_changes() -> None:
    kept = [digest[:4] for row, digest in PINNED if held_out(row_digest(row), 0.3)]
    assert kept == ["3237", "0321"]


def test_about_as_many_are_held_out_as_is_asked_for() -> None:
    kept = sum(held_out(row_digest(TextRow(str(number))), 0.1) for number in range(10_000))
    assert 900 < kept < 1_100
