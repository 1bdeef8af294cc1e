"""What CUDA does otherwise than a CPU in a training step, as far as memory goes, for fake tensors of a CPU.

Read off code, and not yet held against a GPU: torch's `ATen/autocast_mode.h` (2.13) and `sdp_utils.cpp`, FlashAttention
2's `mha_bwd`, bitsandbytes' `backends/cuda/ops.py` (0.50), TRL's `kernels/chunked_logprob.py` (1.16).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from app.planning.setups import LOSS_TILE

aten = torch.ops.aten

IN_FP32 = frozenset[Callable[..., Any]](
    (
        functional.layer_norm,
        functional.rms_norm,
        functional.group_norm,
        functional.softplus,
        torch.layer_norm,
        torch.rms_norm,
        torch.pow,
        torch.Tensor.pow,
        torch.Tensor.__pow__,
        torch.exp,
        torch.Tensor.exp,
        torch.log,
        torch.Tensor.log,
        torch.rsqrt,
        torch.Tensor.rsqrt,
        torch.norm,
        torch.Tensor.norm,
        torch.logsumexp,
    )
)
"""What autocast computes in fp32 on CUDA and in any type on a CPU, of the functions that decoders use."""


@contextmanager
def like_cuda(dtype: torch.dtype, *, grouped_queries: bool) -> Iterator[None]:
    """Have what is computed within it, in `dtype`, allocate as on CUDA. Some names in torch and TRL are exchanged."""
    with ExitStack() as stack:
        stack.enter_context(Functions())
        if dtype is torch.float32 and grouped_queries:
            # Only FlashAttention and the plain form know groups of queries, and the former knows no fp32.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for place, name, value in (
            (torch, "is_autocast_enabled", _autocast_is_enabled),
            (trl.trainer.utils, "_use_triton", lambda _: True),  # logits only where there is a label
            (trl.kernels.chunked_logprob, "TOKEN_CHUNK_SIZE", LOSS_TILE["cuda"][0]),  # training on a CPU has changed it
            (trl.kernels.chunked_logprob, "_forward_tile", _in_place),
            (trl.kernels.chunked_logprob, "_backward_tile", _in_place),
            (trl.kernels.chunked_logprob, "_addmm_fp32", _in_place),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield


_is_enabled = torch.is_autocast_enabled


def _autocast_is_enabled(device_type: str = "cpu") -> bool:
    """Who asks for no device means CUDA; here that is the CPU. PEFT does, and else casts a 4-bit layer's input."""
    return bool(_is_enabled(device_type))


def _in_place(*_: Any, **__: Any) -> None:
    """A kernel that allocates nothing."""


class Functions(TorchFunctionMode):
    """Functions that autocast treats otherwise, and dropout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func in IN_FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


# The name is torch's, and modules give it by keyword.
def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: A002, ARG001
    """With a mask of one byte a number; a CPU's is as wide as the number."""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def inside(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that CUDA's kernel of an operation takes for itself."""
    match str(func._schema.name):
        case "bitsandbytes::gemm_4bit":
            # Unpacks the weights, and their constants twice, past 1,536 rows; of fewer, some GPUs compute packed.
            values, _, shape, _, block = args[:5]
            numbers = math.prod(shape)
            return int(numbers * values.element_size() + 2 * 4 * numbers // block)
        case "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
            return _attention_backward(*args[1:3])
    return 0


def _attention_backward(query: torch.Tensor, key: torch.Tensor) -> int:
    """Gradients of the queries in fp32, rounded up to whole tiles; of keys and values for each query head."""
    rows, heads, length, width = query.shape
    step = 32 if width <= 128 else 64
    padded = rows * heads * -(-length // 128) * 128
    accumulated = padded * (-(-width // step) * step + 1) * 4
    expanded = 2 * query.numel() * query.element_size() if key.shape[1] != heads else 0
    return accumulated + expanded
