"""From rows to token ids and labels: which tokens the model shall learn to say, and which it only reads.

Of a conversation the assistant's turns and the token that ends each of them are trained, and nothing else; of a prompt
with its completion all of the completion, as TRL does; of a text, and with `train_on: all` of these two, every token.
Of a preference and of an answer that is wanted or not the answers are trained, as by TRL's trainers for them. Of a
prompt that is to be answered and graded no token is, and it ends where the assistant speaks.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from app.files.findings import Code, Finding, Place, at
from app.files.rows import ChatMessage, ChatRow, GradedRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow
from worker.training.templates import ChatTemplate, Refused, Span, TemplateUnusable, Turn, shared

IGNORED = -100
"""The label of a token that is not trained; what torch's cross entropy skips."""
BATCH_ROWS = 256
"""Rows tokenised in one call: enough to keep the tokenizer's threads busy, and of long rows so much text that the
tokens of two batches, which are held at a time, take some 200 MB."""
BATCH_CHARACTERS = 1_000_000

TALK = ChatRow([ChatMessage("user", "Ping?"), ChatMessage("assistant", "Pong.")])
"""What every base for chat can learn from; where one cannot, it is not the row's fault."""

TrainOn = Literal["completion", "all"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the model sees at one go."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`: the token's id where it is trained, else -100."""


@dataclass(frozen=True, slots=True)
class LabelledRow(Tokens):
    """One example; of a preference the prompt and the answer that is preferred."""

    place: Place
    rejected: Tokens | None = None
    """Of a preference the prompt and the other answer, which begins as many tokens from the start."""
    wanted: bool | None = None
    """Of an unpaired row its label."""
    item: dict[str, Any] | None = None
    """Of a prompt what its grader reads."""


def labelled(
    rows: Iterable[tuple[Place, Row]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Iterator[LabelledRow | Finding]:
    """Each row as tokens with their labels, or why it has none. Raises `TemplateUnusable` where none could have any.

    While the tokenizer works on one batch, on all cores, the next is read and rendered.
    """
    labeller = _Labeller(tokenizer, train_on)
    before: tuple[_Batch, Future[list[list[_Encoded]]]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as beside:
        for batch in _in_batches(labeller.written(place, row) for place, row in rows):
            begun = batch, beside.submit(_encoded, batch, tokenizer)
            if before is not None:
                yield from labeller.finished(*before)
            before = begun
        if before is not None:
            yield from labeller.finished(*before)


@dataclass(frozen=True, slots=True)
class _Written:
    """A row as text, to be tokenised."""

    place: Place
    texts: list[str]
    """Of a row with a prompt the prompt, and the prompt with each of the answers; else one text."""
    special: bool
    """Whether the tokenizer adds what it begins and ends texts with; a chat template writes that itself."""
    turns: list[Turn] | None = None
    """Of a conversation what is trained."""
    answers: tuple[str, ...] = ()
    """The fields that the answers are in."""
    wanted: bool | None = None
    item: dict[str, Any] | None = None


_Batch = list[_Written | Finding]
_Encoded = tuple[list[int], Encoding]
"""A text's tokens, and which characters they stand for."""


class _Labeller:
    """What the rows of a file have in common: the tokenizer, its template, what is trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        if not tokenizer.is_fast:
            raise TemplateUnusable(
                "The base's tokenizer does not tell which characters a token stands for. Add its tokenizer.json."
            )
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._all = train_on == "all"
        self._ends = _special_ids(tokenizer)
        self._unusable = self._why_unusable()

    def written(self, place: Place, row: Row) -> _Written | Finding:
        """A row as text."""
        try:
            match row:
                case TextRow(text=text):
                    return _Written(place, [self._ended(text)], special=True)
                case ChatRow():
                    return self._conversation(place, row)
                case PromptRow() | UnpairedRow():
                    wanted = row.label if isinstance(row, UnpairedRow) else None
                    return self._answered(place, row, {"completion": row.completion}, wanted)
                case PreferenceRow():
                    return self._answered(place, row, {"chosen": row.chosen, "rejected": row.rejected})
                case GradedRow(item=item):
                    text = self._template.prompt(row.messages, row.tools)
                    return _Written(place, [text], special=False, item=item)
        except Refused as refused:
            return self._finding(place, refused)

    def finished(self, batch: _Batch, encoded: Future[list[list[_Encoded]]]) -> Iterator[LabelledRow | Finding]:
        """A batch's rows with their labels."""
        for row, texts in zip(batch, encoded.result(), strict=True):
            yield row if isinstance(row, Finding) else self._labelled(row, texts)

    def _conversation(self, place: Place, row: ChatRow) -> _Written:
        if self._all:
            return _Written(place, [self._template.text(row)], special=False)
        text, turns = self._template.conversation(row)
        return _Written(place, [text], special=False, turns=turns)

    def _answered(
        self,
        place: Place,
        row: PromptRow | PreferenceRow | UnpairedRow,
        answers: dict[str, str | list[ChatMessage]],
        wanted: bool | None = None,
    ) -> _Written | Finding:
        texts = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        messages = {name: answer for name, answer in answers.items() if isinstance(answer, list)}
        if isinstance(row.prompt, str) and not messages:
            written = [row.prompt, *(row.prompt + self._ended(answer) for answer in texts.values())]
        elif isinstance(row.prompt, list) and not texts:
            written = self._template.answered(row.prompt, messages, row.tools)
        else:
            names = " and ".join(f"'{name}'" for name in ("prompt", *answers))
            message = f"{names} are of two kinds. Write all of them as text, or all as lists of messages."
            return at(place, Code.WRONG_SHAPE, message)
        special = isinstance(row.prompt, str)
        if self._all and isinstance(row, PromptRow):
            return _Written(place, written[1:], special)
        return _Written(place, written, special, answers=tuple(answers), wanted=wanted)

    def _ended(self, text: str) -> str:
        """With the end-of-sequence token behind it, once."""
        eos = self._tokenizer.eos_token
        if not isinstance(eos, str):
            raise TemplateUnusable("The base's tokenizer has no end-of-sequence token, so no answer would ever end.")
        return text if text.endswith(eos) else text + eos

    def _labelled(self, row: _Written, texts: list[_Encoded]) -> LabelledRow | Finding:
        if row.item is not None:
            ids, _ = texts[0]
            return LabelledRow(ids, [IGNORED] * len(ids), row.place, item=row.item)
        try:
            first, *others = self._with_labels(row, texts)
        except Refused as refused:
            return self._finding(row.place, refused)
        if not all(map(_learns, (first, *others))):
            return at(row.place, Code.NOTHING_TRAINED, "there is nothing in it to learn. Add an answer.")
        return LabelledRow(first.input_ids, first.labels, row.place, others[0] if others else None, row.wanted)

    def _with_labels(self, row: _Written, texts: list[_Encoded]) -> list[Tokens]:
        ids, encoding = texts[0]
        if row.turns is not None:
            return [Tokens(ids, self._of_turns(ids, encoding, row.texts[0], row.turns))]
        if not row.answers:
            return [Tokens(ids, ids[:])]
        if not row.special:
            for name, text, (whole, encoding) in zip(row.answers, row.texts[1:], texts[1:], strict=True):
                self._end(whole, encoding, text, (0, len(text)), name)
        # Prompt and answer are tokenised together; the answers begin where their tokens part from the prompt's.
        start = min(shared(ids, whole) for whole, _ in texts[1:])
        return [Tokens(whole, [IGNORED] * start + whole[start:]) for whole, _ in texts[1:]]

    def _of_turns(self, ids: list[int], encoding: Encoding, text: str, turns: list[Turn]) -> list[int]:
        labels = [IGNORED] * len(ids)
        for message, start, end in turns:
            last = self._end(ids, encoding, text, (start, end), f"messages[{message}]")
            first = _token_of(encoding, range(start, end))
            assert first is not None  # noqa: S101  there is one, the last
            if start and ids[first] in self._ends and encoding.char_to_token(start - 1) == first:
                first += 1  # Phi-3's `<|assistant|>` takes the white space behind it along
            labels[first : last + 1] = ids[first : last + 1]
        return labels

    def _end(self, ids: list[int], encoding: Encoding, text: str, span: Span, field: str) -> int:
        """Which token ends a turn. What stands behind it (ChatML's line break) is the template's, not the model's."""
        start, end = span
        stop = start + len(text[start:end].rstrip())
        last = _token_of(encoding, range(stop - 1, start - 1, -1))
        if last is None or ids[last] not in self._ends:
            raise Refused(
                "the base's chat template ends an answer without a special token, so the model would never learn to"
                " stop. Use a base with a chat template that ends its turns.",
                field,
            )
        return last

    def _finding(self, place: Place, refused: Refused) -> Finding:
        if self._unusable:
            raise TemplateUnusable(self._unusable) from refused
        return at(place, Code.TEMPLATE, str(refused), field=refused.field)

    def _why_unusable(self) -> str | None:
        """Why even the simplest of conversations is refused. Asked first: later another thread has the tokenizer."""
        try:
            talk = self._conversation(Place(1, None), TALK)
            self._with_labels(talk, *_encoded([talk], self._tokenizer))
        except Refused as refused:
            return str(refused)
        except TemplateUnusable:  # there is no template, and rows of text need none
            return None
        return None


def _encoded(batch: _Batch, tokenizer: PreTrainedTokenizerBase) -> list[list[_Encoded]]:
    """The tokens of each row's texts, none of what is a finding already."""
    texts: dict[bool, list[str]] = {False: [], True: []}
    for row in batch:
        if isinstance(row, _Written):
            texts[row.special].extend(row.texts)
    encoded = {special: _tokenised(some, tokenizer, special=special) for special, some in texts.items()}
    return [[next(encoded[row.special]) for _ in row.texts] if isinstance(row, _Written) else [] for row in batch]


def _tokenised(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Iterator[_Encoded]:
    if not texts:
        return iter(())
    made = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False)
    return zip(made["input_ids"], made.encodings, strict=True)


def _token_of(encoding: Encoding, characters: range) -> int | None:
    """The first token that one of these stands in: white space, and what a tokenizer normalises away, may have none."""
    return next((token for at in characters if (token := encoding.char_to_token(at)) is not None), None)


def _learns(tokens: Tokens) -> bool:
    """Whether there is anything in the loss, which is of each token after the first."""
    return tokens.labels.count(IGNORED) < len(tokens.labels) - (tokens.labels[:1] != [IGNORED])


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = (at for at, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _in_batches(rows: Iterable[_Written | Finding]) -> Iterator[_Batch]:
    batch, characters = _Batch(), 0
    for row in rows:
        batch.append(row)
        characters += 0 if isinstance(row, Finding) else sum(map(len, row.texts))
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
