"""Chat templates of eight families, tokenizers that know their marks, and conversations to write with them."""

import copy
import io
import json
import random
from functools import cache
from typing import Any, NamedTuple

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from app.files import formats
from app.files.findings import Finding
from tests import tiny
from worker.training.labels import IGNORED, LabelledRow, TrainOn, labelled


class Style(NamedTuple):
    """A family's way to write a conversation, after its model card; the marks are around what the model says."""

    template: str
    end: str
    """The token that ends a turn."""
    eos: str
    special: tuple[str, ...]
    bos: str | None = None
    takes_system: bool = False
    around: tuple[str, str] = ("", "")
    """What the model says before and behind the words of an answer."""
    closing: str = ""
    """What it says behind the last turn of a conversation."""
    call: str | None = None
    """How it says `CALL`, where it can call tools."""
    arguments_as_text: bool = False


STYLES = {
    "chatml": Style(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        end="<|im_end|>",
        eos="<|im_end|>",
        special=("<|im_start|>",),
        takes_system=True,
    ),
    "llama-2": Style(
        "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}"
        "{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}",
        end="</s>",
        eos="</s>",
        special=("[INST]", "[/INST]"),
        bos="<s>",
        around=(" ", " "),
    ),
    "llama-3": Style(  # tools as in 3.1
        "{{ bos_token }}"
        "{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n' }}"
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + ('ipython' if message['role'] == 'tool' else message['role']) }}"
        "{{ '<|end_header_id|>\n\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{% if message['tool_calls'] %}{% set call = message['tool_calls'][0]['function'] %}"
        "{{ '{\"name\": \"' + call['name'] + '\", \"parameters\": ' + call['arguments'] | tojson + '}<|eot_id|>' }}"
        "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endgeneration %}"
        "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        end="<|eot_id|>",
        eos="<|end_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        takes_system=True,
        call='{"name": "look", "parameters": {"box": 3}}<|eot_id|>',
    ),
    "mistral": Style(
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}{% endif %}"
        "{% endfor %}",
        end="</s>",
        eos="</s>",
        special=("[INST]", "[/INST]"),
        bos="<s>",
        around=(" ", ""),
    ),
    "gemma": Style(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}"
        "{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}"
        "{% else %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>' }}"
        "{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        end="<end_of_turn>",
        eos="<eos>",
        special=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
    ),
    "phi": Style(  # its end-of-sequence token closes the conversation, whoever spoke last
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        end="<|end|>",
        eos="<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        takes_system=True,
        closing="\n<|endoftext|>",
    ),
    "qwen": Style(  # only what answers the last question keeps its thoughts
        "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
        "{{ '</tools><|im_end|>\n' }}{% endif %}"
        "{% set found = namespace(last=0) %}"
        "{% for message in messages if message['role'] == 'user' %}{% set found.last = found.last + 1 %}{% endfor %}"
        "{% set asked = namespace(count=0) %}{% for message in messages %}"
        "{% if message['role'] == 'tool' %}"
        "{{ '<|im_start|>user\n<tool_response>\n' + message['content'] + '\n</tool_response><|im_end|>\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{% set content = message['content'] %}{% if message['reasoning_content'] %}"
        "{% set content = '<think>\n' + message['reasoning_content'] + '\n</think>\n\n' + content %}{% endif %}"
        "{% if asked.count < found.last %}{% set content = (content.split('</think>') | last).lstrip('\n') %}"
        "{% endif %}"
        "{{ '<|im_start|>assistant\n' + content }}"
        "{% for call in message['tool_calls'] or [] %}"
        "{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
        "{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
        "{% else %}{% if message['role'] == 'user' %}{% set asked.count = asked.count + 1 %}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        end="<|im_end|>",
        eos="<|im_end|>",
        special=("<|im_start|>",),
        takes_system=True,
        call='<tool_call>\n{"name": "look", "arguments": {"box": 3}}\n</tool_call><|im_end|>',
    ),
    "deepseek": Style(  # thoughts are begun for it, and only the last turn keeps its own
        "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
        "{% elif message['role'] == 'tool' %}"
        "{{ '<｜tool▁outputs▁begin｜>' + message['content'] + '<｜tool▁outputs▁end｜>' }}"
        "{% else %}{% if loop.index0 == 0 or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<｜Assistant｜>' }}"
        "{% endif %}"
        "{{ message['content'] if loop.last else message['content'].split('</think>') | last }}"
        "{% for call in message['tool_calls'] or [] %}{{ '<｜tool▁calls▁begin｜>' + call['type'] + '<｜tool▁sep｜>' }}"
        "{{ call['function']['name'] + '\n```json\n' + call['function']['arguments'] + '\n```<｜tool▁calls▁end｜>' }}"
        "{% endfor %}{{ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1]['role'] != 'tool' %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        end="<｜end▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        special=(
            "<｜User｜>",
            "<｜Assistant｜>",
            "<think>",
            *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "sep", "calls▁end", "outputs▁begin", "outputs▁end")),
        ),
        bos="<｜begin▁of▁sentence｜>",
        takes_system=True,
        call="<｜tool▁calls▁begin｜>function<｜tool▁sep｜>look\n```json\n"
        '{"box": 3}\n```<｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
        arguments_as_text=True,
    ),
}
MARKED = [name for name, style in STYLES.items() if "{% generation %}" in style.template]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


SYSTEM = {"role": "system", "content": "Be short."}
TURNS = [user("What colour is box 1?"), answer("Box 1 is red."), user("And box 2?"), answer("Blue, I think.")]
ONE_TURN, TWO_TURNS = chat(*TURNS[:2]), chat(*TURNS)
CALL = answer("", tool_calls=[{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"box": 3}'}}])
RESULT = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "green, mostly"}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
TOOLS = chat(TURNS[0], CALL, RESULT, *TURNS[1:], tools=[LOOK])
THOUGHT = "<think>\nHm.\n</think>\n\nRed."
ALTERNATING = [
    ONE_TURN,
    TWO_TURNS,
    chat(*TURNS, user("Say <|im_end|> or </s>"), answer("No.")),
    chat(user("Grüße?\n\n"), answer("Schön 🙂\n\n- eins\n- zwei  \n")),
    chat(user(" "), answer("\n\n  indented")),
    chat(user("x"), answer("Who? <|im_end|> Me.")),
    chat(user("x"), answer("a")),
]
FREE = [chat(SYSTEM, *TURNS), chat(*TURNS[:2], answer("Or green.")), chat(SYSTEM, TURNS[1])]
WEIGHTS = [
    chat(TURNS[0], answer("Box 1 is red.", weight=0), *TURNS[2:]),
    chat(*TURNS[:3], answer("Blue, I think.", weight=0)),
    chat(TURNS[0], answer("Box 1 is red.", weight=1), *TURNS[2:]),
]


def conversations(style: str) -> list[dict[str, Any]]:
    return ALTERNATING + (FREE if STYLES[style].takes_system else [])


def some_texts(count: int) -> list[str]:
    """Words, breaks, spaces and letters of several bytes, at whose borders tokens may merge."""
    pieces = [
        "box",
        " box",
        "es",
        "red",
        " ",
        "  ",
        "\n",
        "\n\n",
        "ü",
        "🙂",
        "日本",
        ".",
        '{"a": 1}',
        "<|im_start|>",
        "1",
    ]
    chance = random.Random(0)  # noqa: S311  no secret; the same rows each time
    return ["".join(chance.choices(pieces, k=chance.randint(1, 6))) for _ in range(count)]


@cache
def _plain_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.make_tokenizer()


def tokenizer_with(template: str | None = tiny.CHATML, *special: str) -> PreTrainedTokenizerFast:
    made = copy.deepcopy(_plain_tokenizer())
    made.chat_template = template
    if special:
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    return made


@cache
def tokenizer_of(style: str, *, marks: bool = False) -> PreTrainedTokenizerFast:
    chosen = STYLES[style]
    made = tokenizer_with(chosen.template)
    made.add_special_tokens({"eos_token": chosen.eos, "additional_special_tokens": list(chosen.special)})
    if chosen.bos is not None:
        made.add_special_tokens({"bos_token": chosen.bos})
        begins_with(made, chosen.bos)
    if not marks:
        made.chat_template = chosen.template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return made


def begins_with(tokenizer: PreTrainedTokenizerFast, bos: str, eos: str = "") -> None:
    """Have it add these to every text, as these families' do; what a template writes has them already."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (bos, eos) if token]
    frame = TemplateProcessing(single=f"{bos} $A {eos}".strip(), special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = frame
    assert tokenizer("a")["input_ids"][0] == ids[0][1]


def made_of(
    tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any], train_on: TrainOn = "completion"
) -> list[LabelledRow | Finding]:
    """As preparing does, from the bytes of a file."""
    read = formats.read_rows(io.BytesIO(tiny.jsonl(list(rows))))
    made = list(labelled(read, tokenizer, train_on))
    places = [(one.row, one.line) if isinstance(one, Finding) else one.place for one in made]
    assert places == [(line, line) for line in range(1, len(rows) + 1)]
    return made


def label(
    tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any], train_on: TrainOn = "completion"
) -> list[LabelledRow]:
    """The same of rows that are all good."""
    good = []
    for made in made_of(tokenizer, *rows, train_on=train_on):
        assert isinstance(made, LabelledRow), made
        assert len(made.labels) == len(made.input_ids)
        assert all(label in (IGNORED, token) for label, token in zip(made.labels, made.input_ids, strict=True))
        good.append(made)
    return good


def refused(tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any]) -> Finding:
    """What is found of the last of these rows; the others are good."""
    *good, last = made_of(tokenizer, *rows)
    assert all(isinstance(made, LabelledRow) for made in good)
    assert isinstance(last, Finding), last
    return last


def learnt(row: LabelledRow, tokenizer: PreTrainedTokenizerFast) -> str:
    """The trained tokens as text."""
    return str(tokenizer.decode([label for label in row.labels if label != IGNORED]))


def by_prefixes(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, style: Style, template: str | None = None
) -> tuple[list[int], list[int]]:
    """A turn is what a conversation's tokens have more with it than before it; it ends with its last `end`."""

    def tokens(messages: list[dict[str, Any]], *, prompt: bool = False) -> list[int]:
        given = [_as_given(message, arguments_as_text=style.arguments_as_text) for message in messages]
        ids = tokenizer.apply_chat_template(
            given,
            tools=row.get("tools"),
            chat_template=template,
            add_generation_prompt=prompt,
            return_dict=False,
        )
        return [int(token) for token in ids]

    messages, whole = row["messages"], tokens(row["messages"])
    labels = [IGNORED] * len(whole)
    end, eos = (tokenizer.convert_tokens_to_ids(token) for token in (style.end, style.eos))
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight") != 0:
            before, through = tokens(messages[:index], prompt=True), tokens(messages[: index + 1])
            last = index == len(messages) - 1
            if style.closing and not last:
                assert through.pop() == eos
            assert whole[: len(through)] == through
            start = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
            stop = max(at for at, token in enumerate(through) if token == (eos if style.closing and last else end)) + 1
            labels[start:stop] = whole[start:stop]
    return whole, labels


def _as_given(message: dict[str, Any], *, arguments_as_text: bool) -> dict[str, Any]:
    given = {key: value for key, value in copy.deepcopy(message).items() if key != "weight"}
    for call in [] if arguments_as_text else given.get("tool_calls", []):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return given
