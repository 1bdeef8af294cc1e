"""A base of which there is a config alone: Llama-3-8B."""

import json
from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from app.settings import get_settings

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


@pytest.fixture
def llama(session: Session) -> Iterator[str]:
    """A base of which there is a config alone."""
    folder = get_settings().models / "llama-3-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    yield folder.name
    (folder / "config.json").unlink()
    folder.rmdir()
