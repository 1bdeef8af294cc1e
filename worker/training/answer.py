"""What a model says to held-out prompts, by plain transformers and PEFT, with nothing of the service around it.

`python -m worker.training.answer MODEL [--adapter FOLDER] < rows.jsonl > answers.jsonl`: a row is `{"messages": [...]}`
up to the answer; an answer is a JSON string.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from worker.training import device

MAX_NEW_TOKENS = 64
BATCH_ROWS = 40


def main() -> None:
    """Read rows, write answers in the same order."""
    arguments = _arguments()
    rows = [json.loads(line)["messages"] for line in sys.stdin]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=device.find().compute_dtype)
    if arguments.adapter is not None:
        model = PeftModel.from_pretrained(model, arguments.adapter).merge_and_unload()
    model.eval()
    for start in range(0, len(rows), BATCH_ROWS):
        for answer in _answers(model, tokenizer, rows[start : start + BATCH_ROWS]):
            sys.stdout.write(json.dumps(answer) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path)
    return parser.parse_args()


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict[str, str]]]
) -> list[str]:
    """Greedy, so that the same model says the same again."""
    batch = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    new = out[:, batch["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


if __name__ == "__main__":
    main()
