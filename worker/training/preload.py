"""What a trainer will need, imported before there is a job: the difference between 5 seconds and 1.

Imports only: no CUDA context and no thread pool, either of which would cost a waiting process its lightness.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

MODEL_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3")
"""transformers loads these lazily; the common ones are loaded ahead."""

PREPARING = (*(f"transformers.models.{family}.configuration_{family}" for family in MODEL_FAMILIES), "pandas")
"""What reading a base's tokenizer, and pyarrow's first table, import late."""

LAZY = ("torch._dynamo", "accelerate.utils.other")


def import_bitsandbytes() -> None:
    """bitsandbytes without torch's compiler: a trainer takes 7.8 s of processor time to start, and 9.7 s with it.

    When it is imported it (0.50) has `torch.compile` make ready functions for devices that it has no kernels for. Here
    that is done when one is called. Does nothing where it is imported already.
    """
    import torch  # the preparer has no use for it

    at_once = torch.compile

    def when_called(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(when_called, **options)
        compiled = functools.cache(lambda: at_once(function, **options))
        return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = when_called  # type: ignore[assignment]  # which has an overload for each way to call it
    try:
        _try("bitsandbytes")
    finally:
        torch.compile = at_once


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
