"""A Llama of some hundred thousand weights, its tokenizer, and rows it can learn: made on the spot, in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.planning.step import ModelShape

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ANSWER = {"role": "assistant", "content": "Red."}
COLOURS = ["red", "green", "blue", "white", "black"]


def make_base(
    folder: Path,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    context: int = 256,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tied: bool = True,
) -> Path:
    """Write a base model to a folder: config, safetensors, tokenizer, chat template."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # a test's own random numbers do not depend on its base
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(family: str, shape: ModelShape, **options: Any) -> Any:
    """The config that a model of some family has where it has this shape."""
    return AutoConfig.for_model(
        family,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tied_embeddings,
        **options,
    )


def make_tokenizer(chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [json.dumps(row) for row in [*chat_rows(20), *prompt_rows(20)]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=384, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        model_max_length=256,
    )


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What colour is box {index}?" + " Tell me." * (index % 4)},
                {"role": "assistant", "content": f"Box {index} is {COLOURS[index % 5]}."},
            ]
        }
        for index in range(count)
    ]


def prompt_rows(count: int) -> list[dict[str, Any]]:
    """The same as prompt and completion."""
    return [
        {"prompt": f"box {index}:" + " look," * (index % 4), "completion": f" {COLOURS[index % 5]}"}
        for index in range(count)
    ]


def preference_rows(count: int) -> list[dict[str, Any]]:
    """The same with the answer that is wanted, and another one of another length."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": f" not {COLOURS[(index + 1) % 5]}" + "!" * (index % 3),
        }
        for index, row in enumerate(prompt_rows(count))
    ]


def unpaired_rows(count: int) -> list[dict[str, Any]]:
    """Single answers, of which every third is not wanted."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if index % 3 else "rejected"], "label": bool(index % 3)}
        for index, row in enumerate(preference_rows(count))
    ]


def graded_rows(count: int) -> list[dict[str, Any]]:
    """Questions with what a grader holds answers against."""
    return [{"messages": row["messages"][:1], "answer": row["messages"][1]["content"]} for row in chat_rows(count)]


GRADER = {
    "type": "text_similarity",
    "name": "likeness",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}


def text_rows(count: int) -> list[dict[str, Any]]:
    """The same as plain text."""
    return [{"text": row["prompt"] + row["completion"]} for row in prompt_rows(count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One row a line."""
    path.write_bytes(jsonl(rows))
    return path


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """The same, in memory."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
