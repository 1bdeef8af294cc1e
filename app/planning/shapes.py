"""A decoder's shape, read from its `config.json`, under the names that families give to the same thing."""

import math
from collections.abc import Mapping
from typing import Any

from app.planning.step import ModelShape, Role

NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "intermediate_size": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"),
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "positions": ("max_position_embeddings", "n_positions"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_top_k"),
}
PLAIN = frozenset(
    {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi", "starcoder2"}
)
"""`model_type`s whose MLP has no gate."""
LAYER_NORM = PLAIN | {"cohere", "cohere2", "olmo", "stablelm"}
"""Those that normalise with LayerNorm."""
EAGER = frozenset({"gemma2", "gpt_oss", "vaultgemma"})
"""Those whose attention transformers (5) computes with the scores laid out, because SDPA does not know their caps."""
TIED = frozenset({"bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "opt"})
"""Those whose output layer is the embeddings, where `config.json` does not say."""
FUSED: dict[str, tuple[tuple[Role, ...], ...]] = {
    **dict.fromkeys(("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt"), (("q", "k", "v"),)),
    "phi3": (("q", "k", "v"), ("gate", "up")),
}
"""Those that make several of queries, keys, values, gate and up in one layer."""
POSITIONS = {"gpt2": 0, "gpt_bigcode": 0, "gpt_neo": 0, "opt": 2}
"""Those that learn their positions, and how many more than `config.json` says."""
OF_ANOTHER_KIND = {
    "kv_lora_rank": "multi-head latent attention",
    "ssm_state_size": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_value_heads": "linear attention",
}
"""Fields of models that the formula knows nothing of, and what they have."""


class NotPlannable(ValueError):
    """The shape of a model is not known from its config; the message says what is in the way."""


def shape_of(config: Mapping[str, Any], *, tensors: Mapping[str, tuple[int, ...]] | None = None) -> ModelShape:
    """The shape of the model, or of the text model within one of several kinds of input.

    `tensors`: names and shapes from the headers of its weights, which count its parameters exactly. Raises
    `NotPlannable`.
    """
    text = text_config(config)
    for name, what in OF_ANOTHER_KIND.items():
        if text.get(name):
            raise NotPlannable(f"the model has {what} ({name}), which the memory formula does not know.")
    family = str(text.get("model_type") or config.get("model_type") or "")
    hidden, heads = number(text, "hidden_size"), number(text, "num_heads")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", family in TIED))
    if tensors:
        tied = not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in tensors)
    return ModelShape(
        hidden_size=hidden,
        num_layers=number(text, "num_layers"),
        num_heads=heads,
        num_kv_heads=1 if text.get("multi_query") is True else number(text, "num_kv_heads", default=heads),
        head_dim=_whole(text.get("head_dim")) or hidden // heads,
        intermediate_size=number(text, "intermediate_size", default=4 * hidden),
        vocab_size=number(text, "vocab_size"),
        tied_embeddings=bool(tied),
        gated_mlp=family not in PLAIN,
        norm="layer" if family in LAYER_NORM else "rms",
        num_experts=number(text, "num_experts", default=0),
        experts_per_token=number(text, "experts_per_token", default=0),
        positions=number(text, "positions") + POSITIONS[family] if family in POSITIONS else 0,
        keeps_scores=family in EAGER,
        fused=FUSED.get(family, ()),
        total_params=sum(map(math.prod, tensors.values())) if tensors and text is config else None,
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the text model: all of it, where there is no other."""
    within = config.get("text_config")
    return within if isinstance(within, Mapping) else config


def number(config: Mapping[str, Any], field: str, *, default: int | None = None) -> int:
    """Under whichever of its names. Raises `NotPlannable`."""
    names = NAMES.get(field, (field,))
    for name in names:
        if number := _whole(config.get(name)):
            return number
    if default is None:
        raise NotPlannable(f"config.json has no {' or '.join(names)}.")
    return default


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40 else None
