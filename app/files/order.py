"""The order of a conversation's roles: what no chat template expects, and some refuse."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.files.rows import ChatMessage


class Misplaced(NamedTuple):
    """A message that is out of order."""

    number: int
    rule: str
    """What is wrong with it, without its place: the same for all messages that break the same rule."""


_USUAL = re.compile("[sd]*(?:ua)+")
"""System or developer, then user and assistant by turns; roles by their first letters, which are all different."""


class _Call(NamedTuple):
    number: int
    id: str | None


def misplaced(conversation: list[ChatMessage]) -> Iterator[Misplaced]:
    """The messages that are out of order. Fast for the usual conversation."""
    roles = "".join([message.role[0] for message in conversation])
    if _USUAL.fullmatch(roles) and not any(message.tool_calls for message in conversation):
        return
    before: ChatMessage | None = None
    opening = True  # nothing yet but system and developer messages
    unanswered: list[_Call] = []
    for number, message in enumerate(conversation):
        if rule := _broken(message, before, opening=opening):
            yield Misplaced(number, rule)
        if message.role == "tool":
            if not _answer(unanswered, message):
                yield Misplaced(number, "is a tool's result without a call that it answers. Add the call, or drop it.")
        else:
            for call in unanswered[:1]:
                yield Misplaced(call.number, "calls a tool, and the conversation goes on without the result. Add it.")
            unanswered = [_Call(number, _text(call.get("id"))) for call in message.tool_calls or []]
        before, opening = message, opening and message.role in {"system", "developer"}
    if "a" in roles and not roles.endswith("a"):
        last = len(roles) - 1
        yield Misplaced(last, "comes after the last answer, so it is read and nothing is learnt from it. Drop it.")


def _broken(message: ChatMessage, before: ChatMessage | None, *, opening: bool) -> str | None:
    """The rule that a message breaks by what it comes after."""
    after = before.role if before is not None else None
    match message.role:
        case "system" | "developer" if not opening:
            return f"is a {message.role} message in the midst. Templates take it at the start only."
        case "assistant" if opening:
            return "is an assistant message that answers nothing. Begin with the user's."
        case "assistant" if before is not None and after == "assistant" and not before.tool_calls:
            return "is a second assistant message in a row. Join the two, or add the user's turn."
        case "user" if after == "user":
            return "is a second user message in a row. Join the two, or add the answer."
        case "function" if after not in {"assistant", "function"}:
            return "is a function's result without a call that it answers. Add the call, or drop it."
        case _:
            return None


def _answer(unanswered: list[_Call], message: ChatMessage) -> bool:
    """Take the call that a result belongs to off the list; one without an id belongs to the first."""
    for call in unanswered:
        if call.id == message.tool_call_id or call.id is None or message.tool_call_id is None:
            unanswered.remove(call)
            return True
    return False


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
