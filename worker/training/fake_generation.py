"""Answers of a fake model, as TRL has transformers generate them: the prompts at once, and the last token."""

import inspect
from typing import Any

import torch
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, resolved
from worker.training.fake_model import base_of
from worker.training.live import LiveStorages


def generate(trained: torch.nn.Module, spec: JobSpec, sequences: int, live: LiveStorages, *, padded: bool) -> None:
    """`sequences` answers side by side, as long as they may become: with a cache, and without gradients."""
    own = spec.hyperparameters
    assert isinstance(own, ReinforcementHyperparameters)  # noqa: S101  no other generates
    length = resolved(own.max_length)
    prompt = max(1, length - resolved(own.max_completion_length))
    base = base_of(trained)
    cache = DynamicCache(config=base.config)
    takes = inspect.signature(type(base).forward).parameters
    its = {"cache" if "cache" in takes else "past_key_values": cache}  # transformers 5.24 renames it family by family

    def next_of(tokens: int, seen: int) -> None:
        ids = torch.empty((sequences, tokens), dtype=torch.long)
        mask = torch.empty((sequences, seen), dtype=torch.long) if padded else None
        made = base(input_ids=ids, attention_mask=mask, **its, use_cache=True, logits_to_keep=1)
        _sample(made.logits, own)

    next_of(prompt, prompt)
    for layer in cache.layers:
        seen = min(length, getattr(layer, "sliding_window", length)) - 1
        for name in ("keys", "values"):
            _, heads, _, width = getattr(layer, name).shape
            setattr(layer, name, getattr(layer, name).new_empty((sequences, heads, seen, width)))
            live.count(getattr(layer, name), "cache")
    next_of(1, length)


def _sample(logits: torch.Tensor, own: ReinforcementHyperparameters) -> Any:
    """As `GenerationMixin._sample` draws a token."""
    scores = logits[:, -1].to(copy=True, dtype=torch.float32)
    unused: Any = None
    if own.temperature != 1:
        scores = TemperatureLogitsWarper(own.temperature)(unused, scores)
    if own.top_p < 1:
        scores = TopPLogitsWarper(own.top_p)(unused, scores)
    return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)
