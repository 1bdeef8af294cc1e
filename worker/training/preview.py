"""Token ids → what they say, token by token, and which of them are trained."""

import json
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from app.files.spec import DataSpec
from worker.training.base import locate_tokenizer
from worker.training.preparation import load_tokenizer, write_last

MOST_TOKENS = 20_000
"""Of a preview, which is one answer over HTTP: a token is some 50 bytes there."""


def show(work_dir: Path) -> None:
    """WORKDIR/shown.json, rows of a prepared set → preview.json, the same rows with their text and tokens."""
    spec = DataSpec.model_validate_json((work_dir / "data.json").read_text())
    tokenizer = load_tokenizer(locate_tokenizer(spec.model, work_dir))
    rows, left = json.loads((work_dir / "shown.json").read_text()), MOST_TOKENS
    for row in rows:
        shown = []
        for sequence in row["sequences"]:
            shown.append(_shown(sequence, tokenizer, left))
            left -= len(shown[-1]["tokens"])
        row["sequences"] = shown
    write_last(work_dir / "preview.json", json.dumps(rows))


def _shown(sequence: dict[str, Any], tokenizer: PreTrainedTokenizerBase, most: int) -> dict[str, Any]:
    ids, trained = sequence["input_ids"][:most], sequence["trained"][:most]
    pieces = _pieces(ids, tokenizer)
    return {
        "name": sequence["name"],
        "text": "".join(pieces),
        "tokens": [
            {"id": one, "text": text, "trained": learnt} for one, text, learnt in zip(ids, pieces, trained, strict=True)
        ],
        "cut": len(sequence["input_ids"]) - len(ids),
    }


def _pieces(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to the text; a character of several tokens is the last one's."""
    if not tokenizer.is_fast:
        return [str(tokenizer.decode([one])) for one in ids]
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer.backend_tokenizer, one) or "" for one in ids]
