"""What a trainer will need, imported before there is a job: the difference between 5 seconds and 1.

Imports only: no CUDA context and no thread pool, either of which would cost a waiting process its lightness.
"""

import importlib

MODEL_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3")
"""transformers loads these lazily; the common ones are loaded ahead."""

PREPARING = (*(f"transformers.models.{family}.configuration_{family}" for family in MODEL_FAMILIES), "pandas")
"""What reading a base's tokenizer, and pyarrow's first table, import late."""

LAZY = ("bitsandbytes", "torch._dynamo", "accelerate.utils.other")


def warm_up() -> None:
    """Import what is imported late; a module that this version of a library lacks is not missed."""
    for family in MODEL_FAMILIES:
        _try(f"transformers.models.{family}.modeling_{family}")
    for name in LAZY:
        _try(name)


def warm_up_preparing() -> None:
    """The same where no model is loaded."""
    for name in PREPARING:
        _try(name)


def _try(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        return
