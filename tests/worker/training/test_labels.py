"""Rows as tokens: which are learnt, that no row is lost, and that TRL prepares the same of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from app.files.findings import Code, Finding, Place
from app.files.rows import ChatMessage, ChatRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow
from tests import tiny
from tests.worker.training.styles import (
    MARKED,
    STYLES,
    SYSTEM,
    TURNS,
    WEIGHTS,
    answer,
    begins_with,
    chat,
    conversations,
    label,
    learnt,
    some_texts,
    tokenizer_of,
    tokenizer_with,
    user,
)
from worker.training.labels import IGNORED, LabelledRow, TrainOn, labelled
from worker.training.templates import TemplateUnusable


def message(given: dict[str, Any]) -> ChatMessage:
    return ChatMessage(**given)


QUESTION, GOOD, BAD = message(TURNS[0]), message(TURNS[1]), message(answer("No idea."))


def of_rows(tokenizer: PreTrainedTokenizerFast, *rows: Row, train_on: TrainOn = "completion") -> list[Any]:
    """What the rows of a file become, whatever file they are of."""
    return list(labelled(((Place(at, None), row) for at, row in enumerate(rows, start=1)), tokenizer, train_on))


def test_train_on_all_learns_every_token() -> None:
    tokenizer = tokenizer_of("llama-3")
    prompt = {"prompt": "box 1:", "completion": " red"}
    messages = {"prompt": TURNS[:1], "completion": TURNS[1:2]}
    for rows in ([chat(SYSTEM, *TURNS), WEIGHTS[0]], [prompt, messages]):
        only_answers, all_of_it = label(tokenizer, *rows), label(tokenizer, *rows, train_on="all")
        assert [row.input_ids for row in all_of_it] == [row.input_ids for row in only_answers]
        assert all(row.labels == row.input_ids for row in all_of_it)


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_of_preferences_and_unpaired_answers_only_the_answers_are_learnt(train_on: TrainOn) -> None:
    tokenizer = tokenizer_with()
    preference = PreferenceRow([QUESTION], [GOOD], [BAD])
    made = of_rows(tokenizer, preference, UnpairedRow("box 1:", " red", label=False), train_on=train_on)

    assert [learnt(row, tokenizer) for row in made] == ["Box 1 is red.<|im_end|>\n", " red<|im_end|>"]
    assert learnt(made[0].rejected, tokenizer) == "No idea.<|im_end|>\n"
    assert [(row.wanted, row.rejected is None) for row in made] == [(None, False), (False, True)]


def test_rows_of_all_kinds_keep_the_order_of_the_file_and_none_is_lost() -> None:
    tokenizer = tokenizer_with()
    kinds: list[Row] = [
        ChatRow([QUESTION, GOOD]),
        ChatRow([QUESTION, message(answer("", tool_calls=[{"function": {"name": "look", "arguments": "{}"}}]))]),
        PromptRow("box 1:", " red"),
        PromptRow([QUESTION], [GOOD]),
        PromptRow("box 1:", [GOOD]),
        TextRow("red"),
        TextRow(""),
        PreferenceRow("box 1:", " red", " blue"),
        UnpairedRow([QUESTION], [BAD], label=True),
    ]
    codes = [None, Code.TEMPLATE, None, None, Code.WRONG_SHAPE, None, Code.NOTHING_TRAINED, None, None]

    made = of_rows(tokenizer, *kinds * 100)  # of more than one batch

    assert [row.row if isinstance(row, Finding) else row.place.row for row in made] == list(range(1, 901))
    assert [row.code if isinstance(row, Finding) else None for row in made] == codes * 100
    assert len({str(row).split(":", 1)[1] for row in made if isinstance(row, Finding)}) == 3


def test_a_conversation_without_a_trained_answer_is_found() -> None:
    (found,) = of_rows(tokenizer_with(), ChatRow([QUESTION, message(answer("Red.", weight=0))]))

    assert (found.code, found.row) == (Code.NOTHING_TRAINED, 1)


def test_texts_need_a_token_that_ends_them() -> None:
    tokenizer = tokenizer_with()
    tokenizer.eos_token = None

    for row in (PromptRow("a", "b"), TextRow("a"), PreferenceRow("a", "b", "c")):
        with pytest.raises(TemplateUnusable, match="no end-of-sequence token"):
            of_rows(tokenizer, row)


def test_texts_need_no_template() -> None:
    for template in (None, "{{ 1 + 'one' }}"):
        (row,) = of_rows(tokenizer_with(template), PromptRow("box 1:", " red"))
        assert isinstance(row, LabelledRow)


def test_answers_of_messages_need_an_end_in_each_branch() -> None:
    tokenizer = tokenizer_with(
        tiny.CHATML.replace("+ '<|im_end|>'", "+ ('' if 'idea' in message['content'] else '<|im_end|>')")
    )
    good, bad = of_rows(tokenizer, PreferenceRow([QUESTION], [GOOD], [GOOD]), PreferenceRow([QUESTION], [GOOD], [BAD]))

    assert isinstance(good, LabelledRow)
    assert (bad.code, bad.field) == (Code.TEMPLATE, "rejected")
    assert "ends an answer without a special token" in bad.message


# --- what TRL makes of the same rows -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(bases: Path) -> PreTrainedModel:
    """Never run; TRL's trainer prepares nothing without one."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(bases / "tiny")
    return loaded


QUIET: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "max_length": None,
    "report_to": "none",
    "disable_tqdm": True,
}


def by_trl(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], out: Path, **options: Any
) -> list[tuple[list[int], list[int]]]:
    trainer = SFTTrainer(
        model=model,
        processing_class=copy.deepcopy(tokenizer),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(output_dir=str(out), **QUIET, **options),
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def by_us(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], train_on: TrainOn = "completion"
) -> list[tuple[list[int], list[int]]]:
    return [(row.input_ids, row.labels) for row in label(tokenizer, *rows, train_on=train_on)]


CHANCE = some_texts(80)
TEXTS = [
    *tiny.prompt_rows(5),
    {"prompt": "box", "completion": "es"},
    {"prompt": "a", "completion": "It ends itself.<|im_end|>"},
    {"prompt": "", "completion": "Nothing goes before."},
    *({"prompt": prompt, "completion": text} for prompt, text in zip(CHANCE[:40], CHANCE[40:], strict=True)),
]


@pytest.mark.parametrize("adds", ["nothing", "bos", "bos and eos"])
@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_texts_are_what_trl_makes_of_them(model: PreTrainedModel, tmp_path: Path, adds: str, train_on: TrainOn) -> None:
    tokenizer = tokenizer_with()
    if adds != "nothing":
        begins_with(tokenizer, "<|im_start|>", "<|im_end|>" if "eos" in adds else "")

    theirs = by_trl(model, tokenizer, TEXTS, tmp_path, completion_only_loss=train_on == "completion")

    assert by_us(tokenizer, TEXTS, train_on) == theirs
    assert any(IGNORED in labels for _, labels in theirs) == (train_on == "completion")


@pytest.mark.parametrize("style", STYLES)
def test_prompts_and_completions_of_messages_are_what_trl_makes_of_them(
    model: PreTrainedModel, tmp_path: Path, style: str
) -> None:
    tokenizer = tokenizer_of(style)
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in conversations(style)]
    rows.append({"prompt": TURNS[:1], "completion": TURNS[1:]})

    assert by_us(tokenizer, rows) == by_trl(model, tokenizer, rows, tmp_path)
    assert by_us(tokenizer, rows, "all") == by_trl(model, tokenizer, rows, tmp_path, completion_only_loss=False)


@pytest.mark.parametrize("style", MARKED)
def test_conversations_have_the_labels_of_trls_assistant_only_loss(
    model: PreTrainedModel, tmp_path: Path, style: str
) -> None:
    """TRL reads the template's marks; we read the template with them, and one without, to the same end."""
    chance = [
        chat(user(CHANCE[at]), answer(f"{CHANCE[at + 1]}!"), user(CHANCE[at + 2]), answer(f"{CHANCE[at + 3]}?"))
        for at in range(0, 80, 4)
    ]
    rows = conversations(style) + chance

    theirs = by_trl(model, tokenizer_of(style, marks=True), rows, tmp_path, assistant_only_loss=True)

    assert by_us(tokenizer_of(style, marks=True), rows) == theirs
    assert by_us(tokenizer_of(style), rows) == theirs


def test_a_token_that_an_answer_shares_with_what_stands_before_it_is_learnt_as_in_trl(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    marked = STYLES["chatml"].template.replace("message['role'] + '\n'", "message['role'] + ' col'")
    tokenizer = tokenizer_with(marked.replace("assistant\n", "assistant col"))
    row = chat(TURNS[0], answer("our is red."))
    assert tokenizer.tokenize(" colour") == ["\u0120colour"]

    ours = by_us(tokenizer, [row])

    assert ours == by_trl(model, tokenizer, [row], tmp_path, assistant_only_loss=True)
    assert tokenizer.decode([label for label in ours[0][1] if label != IGNORED]) == " colour is red.<|im_end|>"


def test_whole_texts_are_what_trl_makes_of_them(model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = tokenizer_with()
    begins_with(tokenizer, "<|im_start|>")
    texts = [*CHANCE[:40], "It ends itself.<|im_end|>"]

    ours = [(row.input_ids, row.labels) for row in of_rows(tokenizer, *map(TextRow, texts))]

    assert ours == by_trl(model, tokenizer, [{"text": text} for text in texts], tmp_path)


Pair = tuple[dict[str, Any], PreferenceRow]


def pairs(kind: str) -> list[Pair]:
    """Preferences as TRL takes them and as we do."""
    made: list[Pair] = []
    for at in range(0, 78, 3):
        prompt, chosen, rejected = CHANCE[at : at + 3]
        if kind == "text":
            made.append(
                ({"prompt": prompt, "chosen": chosen, "rejected": rejected}, PreferenceRow(prompt, chosen, rejected))
            )
        else:
            parts = [user(prompt)], [answer(f"{chosen}!")], [answer(f"{rejected}?"), user("Sure?"), answer("Yes.")]
            given = dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))
            asked, liked, disliked = ([message(one) for one in part] for part in parts)
            made.append((given, PreferenceRow(asked, liked, disliked)))
    return made


@pytest.mark.parametrize("style", ["text", "chatml", "llama-3", "phi", "qwen", "deepseek"])
def test_preferences_are_what_trl_makes_of_them(model: PreTrainedModel, tmp_path: Path, style: str) -> None:
    tokenizer = tokenizer_with() if style == "text" else tokenizer_of(style)
    given, rows = zip(*pairs(style), strict=True)
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        processing_class=copy.deepcopy(tokenizer),
        train_dataset=Dataset.from_list(list(given)),
        args=DPOConfig(output_dir=str(tmp_path), **QUIET),
    )

    for theirs, ours in zip(trainer.train_dataset, of_rows(tokenizer, *rows), strict=True):
        for one, answered in ((ours, theirs["chosen_ids"]), (ours.rejected, theirs["rejected_ids"])):
            assert one.input_ids == theirs["prompt_ids"] + answered
            assert one.labels == [IGNORED] * len(theirs["prompt_ids"]) + answered


@pytest.mark.parametrize("style", ["text", "chatml", "deepseek"])
def test_unpaired_answers_are_what_trl_makes_of_them(model: PreTrainedModel, tmp_path: Path, style: str) -> None:
    tokenizer = tokenizer_with() if style == "text" else tokenizer_of(style)
    given, rows = zip(*pairs(style), strict=True)
    trainer = KTOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        processing_class=copy.deepcopy(tokenizer),
        train_dataset=Dataset.from_list(
            [
                {"prompt": one["prompt"], "completion": one["chosen"], "label": at % 2 == 0}
                for at, one in enumerate(given)
            ]
        ),
        args=KTOConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, **QUIET),
    )
    unpaired = [UnpairedRow(row.prompt, row.chosen, label=at % 2 == 0) for at, row in enumerate(rows)]

    for theirs, ours in zip(trainer.train_dataset, of_rows(tokenizer, *unpaired), strict=True):
        assert ours.input_ids == theirs["prompt_ids"] + theirs["completion_ids"]
        assert ours.labels == [IGNORED] * len(theirs["prompt_ids"]) + theirs["completion_ids"]
        assert ours.wanted == theirs["label"]
