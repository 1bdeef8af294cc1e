"""What a row is, in 16 bytes: the same for the same content, whatever its file is called and looks like.

By these duplicates are known, and rows held out for validation. A held-out row stays held out as long as nothing here
changes, so nothing may: a changed encoding would train on what an earlier job was judged by.
"""

from collections import abc
from hashlib import blake2b
from typing import Any

import msgspec

from app.files.rows import ChatMessage, ChatRow, GradedRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow

DIGEST_BYTES = 16

_encode: abc.Callable[[Any], bytes] = msgspec.json.Encoder(order="deterministic").encode


def row_digest(row: Row) -> bytes:
    """BLAKE2b of the row's parts as compact JSON in UTF-8, the keys of objects sorted.

    The parts are a list: `["chat", messages, tools]`, `["prompt", prompt, completion, tools]`, `["text", text]`,
    `["preference", prompt, chosen, rejected, tools]`, `["unpaired", prompt, completion, label, tools]`, and of a prompt
    to be graded `["graded", messages, tools]`, whatever its grader reads beside it; where messages are text, or a list
    of `[role, text, learnt, name, tool_call_id, tool_calls]`, with thoughts behind them where there are any. Learnt is
    whether it is an assistant's of a weight other than 0; the arguments of a call are an object, as a template sees
    them.
    """
    return blake2b(_encode(_parts(row)), digest_size=DIGEST_BYTES).digest()


def held_out(digest: bytes, share: float) -> bool:
    """Whether a row is among the `share` (0 to 1) that is kept for validation; what 0.1 keeps 0.2 keeps too."""
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _parts(row: Row) -> list[object]:
    match row:
        case ChatRow():
            return ["chat", _said(row.messages), row.tools]
        case PromptRow():
            return ["prompt", _said(row.prompt), _said(row.completion), row.tools]
        case TextRow():
            return ["text", row.text]
        case PreferenceRow():
            return ["preference", _said(row.prompt), _said(row.chosen), _said(row.rejected), row.tools]
        case GradedRow():
            return ["graded", _said(row.messages), row.tools]
        case UnpairedRow():
            return ["unpaired", _said(row.prompt), _said(row.completion), row.label, row.tools]


def _said(part: str | list[ChatMessage]) -> object:
    return part if isinstance(part, str) else [_message(message) for message in part]


def _message(message: ChatMessage) -> list[object]:
    calls = message.for_template()["tool_calls"] if message.tool_calls is not None else None
    said = [message.role, message.text, message.trained, message.name, message.tool_call_id, calls]
    return [*said, message.thoughts] if message.thoughts else said
