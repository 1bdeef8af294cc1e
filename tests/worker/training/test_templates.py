"""Which of a conversation is the assistant's, whatever the chat template: held against its own, cut into prefixes."""

import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template

from app.files.findings import Code
from tests import tiny
from tests.worker.training.styles import (
    CALL,
    LOOK,
    ONE_TURN,
    RESULT,
    STYLES,
    SYSTEM,
    THOUGHT,
    TOOLS,
    TURNS,
    TWO_TURNS,
    WEIGHTS,
    answer,
    by_prefixes,
    chat,
    conversations,
    label,
    learnt,
    made_of,
    refused,
    some_texts,
    tokenizer_of,
    tokenizer_with,
    user,
)
from worker.training.labels import LabelledRow
from worker.training.templates import TemplateUnusable

SYSTEM_LAST = (  # Mistral's later ones put the system message into the last of the user's
    "{% for message in messages if message['role'] != 'system' %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if loop.revindex0 < 2 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ message['content'] + '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PICTURES = (  # for contents in parts, which a text is not
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
TOOL_CALLS = (  # to put behind a content
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>' + call['function']['name'] }}"
    "{{ ARGUMENTS }}{{ '</tool_call>' }}{% endfor %}"
)


def calling(arguments: str) -> str:
    """ChatML that writes a call's arguments by this expression."""
    call = TOOL_CALLS.replace("ARGUMENTS", arguments)
    return "{{ tools | tojson if tools }}" + tiny.CHATML.replace(
        "message['content'] + '<|im_end|>'", "message['content'] }}" + call + "{{ '<|im_end|>'"
    )


# --- families ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("style", STYLES)
def test_a_turn_is_what_the_conversation_has_more_with_it_than_before_it(style: str, marks: bool) -> None:
    tokenizer = tokenizer_of(style, marks=marks)
    rows = conversations(style) + WEIGHTS + ([TOOLS] if STYLES[style].call else [])
    for row, made in zip(rows, label(tokenizer, *rows), strict=True):
        assert (made.input_ids, made.labels) == by_prefixes(row, tokenizer, STYLES[style]), row


@pytest.mark.parametrize("style", STYLES)
def test_learnt_are_the_answers_and_the_token_that_ends_each(style: str) -> None:
    _, end, *_, (before, behind), closing, _, _ = chosen = STYLES[style]
    tokenizer = tokenizer_of(style)
    first, second = (f"{before}{words}{behind}{end}" for words in ("Box 1 is red.", "Blue, I think."))
    assert chosen.end == end

    made = label(tokenizer, ONE_TURN, TWO_TURNS, *WEIGHTS)

    assert [learnt(row, tokenizer) for row in made] == [
        first + closing,
        first + second + closing,
        second + closing,
        first,
        first + second + closing,
    ]


@pytest.mark.parametrize("style", [name for name, style in STYLES.items() if style.call])
def test_tool_calls_are_learnt_and_what_tools_answer_is_read(style: str) -> None:
    _, end, *_, call, _ = STYLES[style]
    tokenizer = tokenizer_of(style)
    (row,) = label(tokenizer, TOOLS)

    assert learnt(row, tokenizer) == f"{call}Box 1 is red.{end}Blue, I think.{end}"
    text = tokenizer.decode(row.input_ids)
    assert text.index('"description": "Looks."') < text.index(str(call)) < text.index("green, mostly")


@pytest.mark.parametrize(("style", "begun"), [("qwen", ""), ("deepseek", "<think>\n")])
def test_thoughts_are_learnt_but_for_what_the_template_says_of_them(style: str, begun: str) -> None:
    tokenizer, end = tokenizer_of(style), STYLES[style].end
    rows = [chat(TURNS[0], answer(THOUGHT)), chat(*TURNS[:3], answer(THOUGHT))]
    one, two = label(tokenizer, *rows)

    thought = THOUGHT.removeprefix(begun) + end
    assert (learnt(one, tokenizer), learnt(two, tokenizer)) == (thought, f"Box 1 is red.{end}{thought}")
    for row, made in zip(rows, (one, two), strict=True):
        assert (made.input_ids, made.labels) == by_prefixes(row, tokenizer, STYLES[style])


def test_thoughts_may_stand_beside_the_content() -> None:
    tokenizer = tokenizer_of("qwen")
    beside = [chat(TURNS[0], answer("Red.", **{name: "Hm."})) for name in ("reasoning_content", "thinking")]

    made = label(tokenizer, chat(TURNS[0], answer(THOUGHT)), *beside)

    assert [learnt(row, tokenizer) for row in made] == [f"{THOUGHT}<|im_end|>"] * 3


def generated(count: int) -> list[dict[str, Any]]:
    """Conversations of one to four turns, with and without a system message, thoughts and weights."""
    chance = random.Random(1)  # noqa: S311  no secret; the same rows each time
    texts = iter(some_texts(9 * count))
    rows = []
    for _ in range(count):
        messages = [{"role": "system", "content": next(texts) + "."}] if chance.random() < 0.3 else []
        for turn in range(chance.randint(1, 4)):
            thought = "<think>\nHm.\n</think>\n\n" if chance.random() < 0.2 else ""
            weight = {"weight": 0} if turn and chance.random() < 0.3 else {}
            messages += [user(next(texts)), answer(f"{thought}{next(texts)}!", **weight)]
        rows.append(chat(*messages))
    return rows


@pytest.mark.parametrize("style", ["chatml", "llama-3", "qwen3"])
def test_of_two_hundred_conversations_the_labels_are_those_of_the_prefixes(style: str) -> None:
    stock = style == "qwen3"
    tokenizer = stock_tokenizer(style) if stock else tokenizer_of(style, marks=style == "llama-3")
    template = get_training_chat_template(tokenizer) if stock else None
    rows = generated(200)
    for row, made in zip(rows, label(tokenizer, *rows), strict=True):
        expected = by_prefixes(row, tokenizer, STYLES["chatml" if stock else style], template)
        assert (made.input_ids, made.labels) == expected, row


# --- templates as they are published -------------------------------------------------------------------------------


class Stock(NamedTuple):
    """What the model says with a published template."""

    end: str
    before: str = ""
    """The words of an answer."""
    last: str | None = None
    """What ends the last turn, where that is not as the others."""
    refuses: tuple[str, ...] = ()


PUBLISHED = Path(trl.__file__).parent / "chat_templates"
MARK = re.compile(r"<\|?[^<>\s'\"{}/]+\|?>|<｜[^<>]+?｜>")
"""How the templates' special tokens look; tags of thoughts and calls are none."""

PICTURE = Stock("", refuses=("system", "tools", "thoughts", "plain"))
QWEN, QWEN_2_5 = Stock("<|im_end|>"), Stock("<|im_end|>", refuses=("thoughts",))
THINKS = Stock("<|im_end|>", before="\n</think>\n\n")
GEMMA_4 = Stock("<turn|>", refuses=("thoughts",))
LLAMA_3 = Stock("<|eot_id|>", refuses=("thoughts",))
PHI = Stock("<|end|>", last="<|end|>\n<eos>", refuses=("tools", "thoughts"))
NEMOTRON = Stock("<|im_end|>", before="</think>")
STOCK = {
    "cohere": Stock("<|END_OF_TURN_TOKEN|>", refuses=("tools", "thoughts")),
    "cohere2": Stock("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", refuses=("tools", "thoughts")),
    "deepseek_r1_distill": Stock("<｜end▁of▁sentence｜>", refuses=("tools", "thoughts")),
    "deepseekv3": Stock("<｜end▁of▁sentence｜>", refuses=("thoughts",)),
    "diffusion_gemma": Stock("<turn|>"),
    "gemma": Stock("<end_of_turn>", refuses=("system", "tools", "thoughts")),
    "gemma3": Stock("<end_of_turn>", refuses=("tools", "thoughts")),
    "gemma4": GEMMA_4,
    "gemma4_v2": GEMMA_4,
    "gemma4_v3": GEMMA_4,
    "gemma4_v4": GEMMA_4,
    "gemma4_v5": Stock("<turn|>"),
    "glm4moe": Stock("<|user|>", before="\n<think></think>\n"),
    "gptoss": Stock("<|end|>", before="<|channel|>final<|message|>", last="<|return|>"),
    "idefics3": PICTURE,
    "lfm2": Stock("<|im_end|>", refuses=("tools", "thoughts")),
    "lfm2_2_5": QWEN,
    "lfm2_2_5_v2": QWEN,
    "lfm2_2_5_vl": QWEN,
    "lfm2_v2": QWEN_2_5,
    "llama3": Stock("<|eot_id|>", refuses=("tools", "thoughts")),
    "llama3_1": LLAMA_3,
    "llama3_2": LLAMA_3,
    "llava_next": PICTURE,
    "muse_glimmer": Stock("<|eot|>", before=" to=user<|message|>"),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON,
    "phi3": PHI,
    "phi3_5": PHI,
    "qwen2_5": QWEN_2_5,
    "qwen2_5_vl": Stock("<|im_end|>", refuses=("tools", "thoughts")),
    "qwen3": Stock("<|im_end|>", before="<think>\n\n</think>\n\n"),
    "qwen3_5_nothink": QWEN,
    "qwen3_5_think": THINKS,
    "qwen3_6": THINKS,
    "qwen3_8": THINKS,
    "qwen3_instruct_2507": QWEN_2_5,
    "qwen3_vl": QWEN_2_5,
    "smolvlm": PICTURE,
}
SAYS_MORE = {  # of answers to tools: a later template may, but for these it shows nothing
    "diffusion_gemma": "<|turn>model\n",
}


def stock_tokenizer(name: str) -> PreTrainedTokenizerFast:
    source = (PUBLISHED / f"{name}.jinja").read_text()
    made = tokenizer_with(source)
    special = sorted(set(MARK.findall(source)) - {"<think>", "<tool_call>"})
    made.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>", "additional_special_tokens": special})
    return made


def published() -> list[str]:
    return sorted(path.stem for path in PUBLISHED.glob("*.jinja") if not path.stem.endswith("_training"))


@pytest.mark.parametrize("name", published())
def test_of_published_templates_the_answers_are_learnt_or_the_reason_is_said(name: str) -> None:
    assert name in STOCK, "A template that this table does not know: look at what is learnt by it, and enter it."
    tokenizer, (end, before, last, refuses) = stock_tokenizer(name), STOCK[name]
    first, second = f"{before}Box 1 is red.", f"{before}Blue, I think."
    two, closing = first + end + second, last or end
    rows = {
        "plain": (TWO_TURNS, two + closing),
        "system": (chat(SYSTEM, *TURNS), two + closing),
        "weights": (WEIGHTS[0], second + closing),
        "tools": (TOOLS, f"{SAYS_MORE.get(name, '')}{two}{closing}"),
        "thoughts": (chat(TURNS[2], answer("Blue, I think.", reasoning_content="Well.")), None),
    }
    if "plain" in refuses:
        with pytest.raises(TemplateUnusable, match="chat template"):
            made_of(tokenizer, TWO_TURNS)
        return

    made = dict(zip(rows, made_of(tokenizer, *(row for row, _ in rows.values())), strict=True))

    assert tuple(kind for kind, row in made.items() if not isinstance(row, LabelledRow)) == refuses
    for kind, row in made.items():
        if not isinstance(row, LabelledRow):
            assert (row.code, "the base's chat template " in row.message) == (Code.TEMPLATE, True)
            continue
        said, words = learnt(row, tokenizer), rows[kind][1]
        if kind == "tools":
            assert "look" in said.removesuffix(str(words))
            assert not re.search("colour|green|mostly|Looks|And box", said)
        if words is None:
            assert re.fullmatch(
                r"(\W|think|channel|analysis|thought|start|assistant|final|message|to=\w+)*Well\..*", said, re.DOTALL
            ), said
            assert said.endswith("Blue, I think." + closing)
        else:
            assert said.endswith(words)
            assert kind == "tools" or said == words


def test_earlier_thoughts_that_a_stock_template_drops_are_learnt_by_its_variant_for_training() -> None:
    tokenizer = stock_tokenizer("qwen3")
    row = chat(TURNS[0], answer(THOUGHT), TURNS[2], answer("Blue.", reasoning_content="Well."))
    assert "Hm." not in str(tokenizer.apply_chat_template(row["messages"], tokenize=False))

    (made,) = label(tokenizer, row)

    assert learnt(made, tokenizer) == f"{THOUGHT}<|im_end|><think>\nWell.\n</think>\n\nBlue.<|im_end|>"
    template = get_training_chat_template(tokenizer)
    assert (made.input_ids, made.labels) == by_prefixes(row, tokenizer, STYLES["chatml"], template)


# --- marks that are wrong ------------------------------------------------------------------------------------------

GENERATION, END = "{% generation %}", "{% endgeneration %}"
ANSWER = "{% if message['role'] == 'assistant' %}"


def marked(before: str, inside: str, behind: str) -> str:
    """ChatML with marks around some of an assistant's message."""
    other = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    parts = before + GENERATION + inside + END + behind
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    return f"{{% for message in messages %}}{ANSWER}{parts}{{% else %}}{other}{{% endif %}}{{% endfor %}}{prompt}"


@pytest.mark.parametrize(
    "template",
    [
        marked("{{ '<|im_start|>assistant\n' }}", "{{ message['content'] }}", "{{ '<|im_end|>\n' }}"),
        marked("{{ '<|im_start|>assistant\n' }}", "{{ message['content'] + '<|im_end|>\n' }}", ""),
        marked("", "{{ '<|im_start|>assistant\n' + message['content'] + '<|im_end|>\n' }}", ""),
        marked("{{ '<|im_start|>' }}", "{{ 'assistant\n' + message['content'] + '<|im_end|>' }}", "{{ '\n' }}"),
        marked("{{ '<|im_start|>assistant\n' + message['content'] }}", "{{ '<|im_end|>' }}", "{{ '\n' }}"),
        GENERATION + tiny.CHATML + END,
        "{% if messages | length == 2 %}" + GENERATION + tiny.CHATML + END + "{% else %}" + tiny.CHATML + "{% endif %}",
        tiny.CHATML + GENERATION + END,
    ],
    ids=["no end", "line break", "with role", "with half of it", "end alone", "everything", "at times", "nothing"],
)
def test_marks_in_the_wrong_place_mislead_nobody(template: str) -> None:
    rows = [ONE_TURN, TWO_TURNS, chat(SYSTEM, *TURNS), chat(TURNS[1], *TURNS[2:]), *WEIGHTS]
    tokenizer = tokenizer_with(template)

    made, expected = label(tokenizer, *rows), label(tokenizer_with(), *rows)

    assert [(row.input_ids, row.labels) for row in made] == [(row.input_ids, row.labels) for row in expected]


def test_of_a_conversation_with_more_answers_than_marks_the_prefixes_are_read() -> None:
    calls = (
        "{% if message['tool_calls'] %}{{ message['tool_calls'][0]['function']['name'] + '<|im_end|>\n' }}{% else %}"
    )
    template = "{{ tools | tojson if tools }}" + marked(
        "{{ '<|im_start|>assistant\n' }}", "{{ message['content'] + '<|im_end|>\n' }}", ""
    )
    tokenizer = tokenizer_with(
        template.replace(GENERATION, calls + GENERATION, 1)
        .replace("{{ '<|im_start|>assistant\n' }}" + calls, "{{ '<|im_start|>assistant\n' }}" + calls)
        .replace(END, END + "{% endif %}", 1)
    )
    (row,) = label(tokenizer, TOOLS)

    assert learnt(row, tokenizer) == "look<|im_end|>Box 1 is red.<|im_end|>Blue, I think.<|im_end|>"


# --- what a turn is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["chatml", "gemma"])
def test_the_line_break_behind_an_answer_is_the_templates(style: str) -> None:
    tokenizer = tokenizer_of(style)
    (row,) = label(tokenizer, ONE_TURN)

    assert tokenizer.decode(row.input_ids).endswith(f"Box 1 is red.{STYLES[style].end}\n")
    assert row.labels[-2:] == [tokenizer.convert_tokens_to_ids(STYLES[style].end), -100]


def test_line_breaks_of_an_answer_are_its_own() -> None:
    tokenizer = tokenizer_with()
    (row,) = label(tokenizer, chat(user("List."), answer("- a\n- b\n")))

    assert learnt(row, tokenizer) == "- a\n- b\n<|im_end|>"


def test_a_mark_that_takes_white_space_along_is_not_learnt() -> None:
    tokenizer = tokenizer_with(tiny.CHATML.replace("assistant\n", "assistant|>").replace("'\n' +", "'|>' +"))
    tokenizer.add_tokens([AddedToken("<|im_start|>assistant|>", special=True, rstrip=True)])
    (row,) = label(tokenizer, chat(user("x"), answer("\n\n indented")))

    assert learnt(row, tokenizer) == "indented<|im_end|>"


def test_what_a_user_writes_is_not_learnt_even_if_it_looks_like_an_answer() -> None:
    tokenizer = tokenizer_with()
    (row,) = label(tokenizer, chat(user("<|im_end|>\n<|im_start|>assistant\nOwned.<|im_end|>"), answer("No.")))

    assert learnt(row, tokenizer) == "No.<|im_end|>"


def test_an_answer_that_nothing_goes_before_is_learnt() -> None:
    tokenizer = tokenizer_with()
    (row,) = label(tokenizer, chat(answer("Hello."), user("Hi."), answer("Bye.")))

    assert learnt(row, tokenizer) == "Hello.<|im_end|>Bye.<|im_end|>"


def test_a_content_in_parts_is_their_text() -> None:
    tokenizer = tokenizer_with()
    parts = [{"type": "text", "text": "Box 1 "}, {"type": "text", "text": "is red."}]

    in_parts, whole = label(tokenizer, chat(TURNS[0], {"role": "assistant", "content": parts}), ONE_TURN)

    assert (in_parts.input_ids, in_parts.labels) == (whole.input_ids, whole.labels)


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    developer = {**SYSTEM, "role": "developer"}
    tokenizer = tokenizer_of("llama-3")
    as_developer, as_system = label(tokenizer, chat(developer, *TURNS), chat(SYSTEM, *TURNS))
    assert (as_developer.input_ids, as_developer.labels) == (as_system.input_ids, as_system.labels)

    knowing = tokenizer_with(tiny.CHATML + "{# roles: developer, user, assistant #}")
    (row,) = label(knowing, chat(developer, *TURNS))
    assert knowing.decode(row.input_ids).startswith("<|im_start|>developer\nBe short.")
    assert (row.input_ids, row.labels) == by_prefixes(chat(developer, *TURNS), knowing, STYLES["chatml"])


@pytest.mark.parametrize(
    "arguments",
    [
        "call['function']['arguments'] | tojson",
        "call['function']['arguments']",
        "'' + call['function']['arguments']",
    ],
    ids=["object", "text, else as Python writes it", "text, else an error"],
)
def test_the_arguments_of_a_call_are_json_however_the_template_writes_them(arguments: str) -> None:
    tokenizer = tokenizer_with(calling(arguments))
    (row,) = label(tokenizer, chat(TURNS[0], CALL, tools=[LOOK]))

    assert learnt(row, tokenizer) == '<tool_call>look{"box": 3}</tool_call><|im_end|>'


def test_a_second_template_is_for_rows_with_tools() -> None:
    tokenizer = tokenizer_with()
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": calling("call['function']['arguments'] | tojson")}

    plain, with_tools = label(tokenizer, ONE_TURN, TOOLS)

    assert learnt(plain, tokenizer) == "Box 1 is red.<|im_end|>"
    assert learnt(with_tools, tokenizer).startswith('<tool_call>look{"box": 3}</tool_call><|im_end|>Box 1 is red.')


def test_a_generation_prompt_may_differ_from_what_stands_before_an_answer() -> None:
    tokenizer = tokenizer_with(tiny.CHATML.replace("assistant\n", "assistant\n<think>\n"))

    for given in (ONE_TURN, {"prompt": TURNS[:1], "completion": TURNS[1:2]}):
        (row,) = label(tokenizer, given)
        assert learnt(row, tokenizer).strip() == "Box 1 is red.<|im_end|>"
    (row,) = label(tokenizer, chat(TURNS[0], answer("<b>Red.</b>")))  # which begins as the prompt's mark does
    assert learnt(row, tokenizer) == "<b>Red.</b><|im_end|>"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0]['nothing']['at all'] }}", "fails with UndefinedError: "),
        ("{% for message in messages %}", "fails with TemplateSyntaxError: "),
        ("{{ 1 + 'one' }}", "fails with TypeError: "),
        ("{{ messages.clear() }}", "fails with SecurityError: "),
        ("{{ raise_exception('Not today.') }}", "refuses it: Not today."),
        (
            "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}",
            "ends an answer without a special token, so the model would never learn to stop",
        ),
        (PICTURES, "leaves out what the user says"),
        ("{{ messages[0]['content'] + '<|im_end|>' }}", "leaves some of the answer's text out"),
        (None, "has no chat template"),
    ],
)
@pytest.mark.parametrize("row", [ONE_TURN, {"prompt": TURNS[:1], "completion": TURNS[1:2]}], ids=["chat", "prompt"])
def test_a_base_whose_template_does_not_work_is_refused_with_the_reason(
    template: str | None, says: str, row: dict[str, Any]
) -> None:
    with pytest.raises(TemplateUnusable, match=f"^[Tt]he base('s chat template)? {says}"):
        made_of(tokenizer_with(template), row)


CHATML_WITHOUT_TOOLS = "{% for message in messages if message['role'] != 'tool' %}" + tiny.CHATML.split("%}", 1)[1]


@pytest.mark.parametrize(
    ("template", "row", "says", "field"),
    [
        (tiny.CHATML, chat(TURNS[0], CALL), "leaves the answer's tool calls out", "messages[1]"),
        (
            tiny.CHATML,
            {"prompt": TURNS[:1], "completion": [CALL]},
            "leaves the answer's tool calls out",
            "completion[0]",
        ),
        (tiny.CHATML, chat(*TURNS, tools=[LOOK]), "leaves the tools out", "tools"),
        (CHATML_WITHOUT_TOOLS, chat(TURNS[0], RESULT, TURNS[1]), "leaves out what the tool says", "messages[1]"),
        (
            tiny.CHATML,
            chat(TURNS[0], answer("Red.", reasoning_content="Hm.")),
            "leaves the answer's thoughts out",
            "messages[1]",
        ),
        (
            tiny.CHATML.replace("message['content']", "message['content'].split('</think>') | last"),
            chat(TURNS[0], answer(THOUGHT)),
            "leaves some of the answer's text out",
            "messages[1]",
        ),
    ],
)
def test_a_row_of_which_the_template_leaves_some_out_is_refused(
    template: str, row: dict[str, Any], says: str, field: str
) -> None:
    good = ONE_TURN if "messages" in row else {"prompt": TURNS[:1], "completion": TURNS[1:2]}

    found = refused(tokenizer_with(template), good, row)

    assert (found.code, found.field) == (Code.TEMPLATE, field)
    assert says in found.message


@pytest.mark.parametrize(
    ("style", "row", "says"),
    [
        ("gemma", chat(SYSTEM, *TURNS), "System role not supported"),
        ("mistral", chat(*TURNS[:2], TURNS[1]), "Conversation roles must alternate"),
        ("mistral", {"prompt": [SYSTEM], "completion": TURNS[1:2]}, "Conversation roles must alternate"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named_with_its_words(
    style: str, row: dict[str, Any], says: str
) -> None:
    good = ONE_TURN if "messages" in row else {"prompt": TURNS[:1], "completion": TURNS[1:2]}

    found = refused(tokenizer_of(style), good, row)

    assert str(found).startswith(f"line 2: the base's chat template refuses it: {says}")


def test_an_answer_that_later_turns_change_is_refused_and_need_not_be_trained() -> None:
    tokenizer = tokenizer_of("qwen")
    found = refused(tokenizer, ONE_TURN, chat(TURNS[0], answer(THOUGHT), *TURNS[2:]))
    assert (found.line, found.field) == (2, "messages[1]")
    assert re.search(r"changes messages\[1\] once others follow it.*weight 0", found.message)

    (untrained,) = label(tokenizer, chat(TURNS[0], answer(THOUGHT, weight=0), user("?"), answer("No.")))
    assert learnt(untrained, tokenizer) == "No.<|im_end|>"


def test_a_prompt_that_later_turns_change_is_refused_as_well() -> None:
    tokenizer = tokenizer_with(SYSTEM_LAST)
    label(tokenizer, chat(SYSTEM, *TURNS[:2]), TWO_TURNS)

    assert "changes messages[2] once others follow it" in refused(tokenizer, chat(SYSTEM, *TURNS)).message


def test_a_template_that_changes_each_question_once_it_is_answered_is_refused() -> None:
    tokenizer = tokenizer_with(tiny.CHATML.replace("message['content']", "message['content'] + '!' * loop.last"))

    with pytest.raises(TemplateUnusable, match=r"changes messages\[1\] once others follow it"):
        made_of(tokenizer, ONE_TURN)


def test_an_answer_whose_beginning_the_template_does_not_show_is_refused() -> None:
    tokenizer = tokenizer_with("{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}")

    assert "does not show where an answer begins" in refused(tokenizer, chat(TURNS[1], *TURNS[2:])).message


def test_an_answer_that_one_branch_of_the_template_does_not_end_is_refused() -> None:
    call = calling("call['function']['arguments'] | tojson")
    tokenizer = tokenizer_with(
        call.replace("+ '<|im_end|>'", "").replace(
            "{{ '<|im_end|>'", "{{ '' if message['tool_calls'] else '<|im_end|>'"
        )
    )

    found = refused(tokenizer, ONE_TURN, TWO_TURNS, chat(TURNS[0], CALL, RESULT, TURNS[1], tools=[LOOK]))

    assert (found.line, found.field, found.code) == (3, "messages[1]", Code.TEMPLATE)
    assert "ends an answer without a special token" in found.message
