"""What is said of a row that can be trained on, and perhaps should not be: order, emptiness, odd or private content."""

from collections.abc import Callable, Iterator
from typing import Protocol

from app.files import characters, credentials, personal
from app.files.findings import Code, Finding, Place, at
from app.files.order import misplaced
from app.files.rows import ChatMessage, GradedRow, Row
from app.files.texts import Field, conversations, parts, texts


class _Sight(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def message(self) -> str: ...


_LOOKS: tuple[tuple[Code, Callable[[str], Iterator[_Sight]]], ...] = (
    (Code.ODD_CHARACTERS, characters.find),
    (Code.SECRET, credentials.find),
    (Code.PERSONAL_DATA, personal.find),
)


def check_row(place: Place, row: Row) -> list[Finding]:
    """Of each kind the first in the row; none of most rows, in some 10 µs."""
    return _order(place, row) + _emptiness(place, row) + _content(place, row) + _answer(place, row)


def _answer(place: Place, row: Row) -> list[Finding]:
    if not isinstance(row, GradedRow) or not row.left_out:
        return []
    said = "its last message is the assistant's, which is left out: here the model answers, and the grader judges that."
    return [at(place, Code.ANSWER_LEFT_OUT, said, field="messages")]


def _order(place: Place, row: Row) -> list[Finding]:
    found: dict[str, Finding] = {}
    for conversation in conversations(row):
        for index, rule in misplaced([message for _, part in conversation for message in part]):
            if rule not in found:
                field = [f"{name}[{number}]" for name, part in conversation for number in range(len(part))][index]
                found[rule] = at(place, Code.BAD_ORDER, f"{field} {rule}", field=field)
    return list(found.values())


def _emptiness(place: Place, row: Row) -> list[Finding]:
    for field in _empty(row):
        return [at(place, Code.EMPTY_CONTENT, f"{field} has no words. Write it, or drop the row.", field=field)]
    return []


def _empty(row: Row) -> Iterator[Field]:
    for name, part in parts(row):
        if isinstance(part, str):
            if not part.strip() and not _is_missing(name, part):
                yield name
        else:
            for number, message in enumerate(part):
                if _has_no_words(message):
                    yield f"{name}[{number}].content"


def _is_missing(name: str, answer: str) -> bool:
    """What shall be learnt, without a character, is an error, which `problem` says."""
    return name in {"text", "completion", "chosen", "rejected"} and not answer


def _has_no_words(message: ChatMessage) -> bool:
    text = message.text
    if message.role == "assistant" and (message.tool_calls or (message.trained and not text)):
        return False  # a call needs none, and an answer without a character is an error, which others say
    return not text or text.isspace()


def _content(place: Place, row: Row) -> list[Finding]:
    said = texts(row)
    whole = "\n".join([text for _, text in said])
    found: dict[tuple[Code, str], Finding] = {}
    for code, look in _LOOKS:
        if next(look(whole), None) is None:
            continue
        for field, text in said:
            for sight in look(text):
                if (code, sight.kind) not in found:
                    found[code, sight.kind] = at(place, code, f"{field} {sight.message}", field=field)
    return list(found.values())
