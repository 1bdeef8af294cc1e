"""The model of a dry run: made as the trainer makes it, of fake tensors, which have storages but no numbers.

In shapes alone first, then with storages: the libraries move and cast what they make, which a fake tensor does not
bear (`torch._subclasses.fake_tensor`).
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import peft.tuners.lora.dora
import torch
from bitsandbytes.functional import QuantState
from peft import LoraConfig, PeftModel, get_peft_model
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.integrations import replace_with_bnb_linear
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.quantizers.base import HfQuantizer

from app.jobs.spec import JobSpec, LoraTuning, QloraTuning
from worker.training import configs, like_cuda, model
from worker.training.device import Device

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a constant of 8 bits, and constants that share one of fp32 (bitsandbytes' NF4, twice)."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What trainers on these libraries do each in their own way; by default, as ours does."""

    autocast: bool = True
    """Whether layers compute in 16 bits by autocast; else in the types that weights and adapters have."""
    base: torch.dtype | None = None
    """How the base lies in memory where it is not in 4 bits; by default fp32 where it is trained itself."""
    adapter: torch.dtype = torch.float32
    double_quantization: bool = True
    """Whether constants of 4-bit weights have 8 bits themselves, else 32."""
    tiles: bool = True
    """TRL's loss, a tile of the logits at a time; else transformers' own, over all of them in fp32."""
    holds_outputs: bool = False
    """All logits, and keys and values for a generation that does not come, while the loss is differentiated: a loop of
    one's own that has what the model returned."""


OURS = Habits()


def base_in_shapes(config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits = OURS) -> PreTrainedModel:
    """As `worker.training.model` loads it, on the meta device."""
    kind, config = AutoModelForCausalLM, copy.deepcopy(config)  # which TRL writes into
    if spec.method.type == "reward":
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    with in_shapes():
        base: Any = kind.from_config(
            config,
            dtype=habits.base or configs.base_dtype(spec, machine),
            attn_implementation=model.attention(machine),
            trust_remote_code=False,
        )
        if isinstance(spec.tuning, QloraTuning):
            skipped = HfQuantizer.get_modules_to_not_convert(base, None, base._keep_in_fp32_modules)
            replace_with_bnb_linear(base, skipped, configs.quantization_config(machine))
            base.is_loaded_in_4bit = True
            model.keep_4bit_weights_as_they_are(base)
    made: PreTrainedModel = base
    return made


def adapter_config(base: PreTrainedModel, spec: JobSpec, tuning: LoraTuning) -> LoraConfig:
    """As the trainer asks PEFT for one. Raises `TargetModulesUnusable` and `SpecUnusable`."""
    model.require_target_modules(base, tuning.target_modules)
    whole, tied = model.modules_to_save(base, tuning)
    return configs.lora_config(spec, tuning, whole, tied=tied)


def adapted(base: PreTrainedModel, spec: JobSpec, habits: Habits = OURS) -> torch.nn.Module:
    """With the spec's adapter, where it has one."""
    if not isinstance(spec.tuning, LoraTuning):
        whole: torch.nn.Module = base  # transformers' classes are Any here
        return whole
    wide = habits.adapter is torch.float32
    with in_shapes():
        trained: torch.nn.Module = get_peft_model(
            base, adapter_config(base, spec, spec.tuning), autocast_adapter_dtype=wide
        )
        if wide:
            model.keep_adapter_in_fp32(trained)
    return trained


@contextmanager
def in_shapes() -> Iterator[None]:
    """What is made within it has no storage at all."""
    with unset_fake_temporarily(), torch.device("meta"):
        yield


def checkpointing(machine: Device) -> dict[str, Any]:
    """What transformers is asked for. No mode for functions is at work in a backward, so what is computed again there
    needs its own.
    """
    again = {"context_fn": lambda: (nullcontext(), like_cuda.Functions())} if machine.kind == "cuda" else {}
    return {"use_reentrant": False, **again}


def give_storages(trained: torch.nn.Module, compute_dtype: torch.dtype, habits: Habits = OURS) -> None:
    """To each parameter and buffer its own; to 4-bit weights that of their packed bytes. What is tied stays tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in trained.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                packs = isinstance(module, bitsandbytes.nn.Linear4bit) and name == "weight"
                made[id(parameter)] = _packed(parameter, compute_dtype, habits) if packs else _storage(parameter)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _storage(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)


def _packed(weight: torch.nn.Parameter, compute_dtype: torch.dtype, habits: Habits) -> torch.nn.Parameter:
    """Two weights a byte, with the constants of NF4, as `bitsandbytes.nn.Params4bit` has them.

    An ordinary parameter with its attributes: a subclass of tensors cannot be fake.
    """
    numbers = weight.numel()
    blocks = math.ceil(numbers / BLOCK)
    outer = QuantState(
        absmax=torch.empty(math.ceil(blocks / NESTED_BLOCK)),
        code=torch.empty(256),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    twice = habits.double_quantization
    packed: Any = torch.nn.Parameter(torch.empty(math.ceil(numbers / 2), 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_type, packed.compress_statistics, packed.bnb_quantized = "nf4", twice, True
    packed.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if twice else torch.float32),
        shape=weight.shape,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=compute_dtype,
        offset=torch.empty(()) if twice else None,
        state2=outer if twice else None,
    )
    made: torch.nn.Parameter = packed
    return made


def constants_of(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Of a 4-bit weight; none of others."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    held = [value for one in (state, state.state2) if one is not None for value in vars(one).values()]
    return [value for value in held if torch.is_tensor(value)]


def base_of(trained: torch.nn.Module) -> Any:
    """The model within its adapter, or the model."""
    return trained.get_base_model() if isinstance(trained, PeftModel) else trained


def blocks_are_alike(config: PreTrainedConfig) -> bool:
    """Whether they have the same parameters, and the config says nothing of one that it does not say of all."""
    text = config.get_text_config()
    lists = [one for one in vars(text).values() if isinstance(one, list) and len(one) == text.num_hidden_layers]
    shares_keys = bool(getattr(text, "num_kv_shared_layers", None))
    if shares_keys or any(one != one[:1] * len(one) for one in lists):
        return False
    with in_shapes():
        blocks = blocks_of(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    shapes = [[(name, one.shape) for name, one in block.named_parameters()] for block in blocks]
    return len(blocks) == text.num_hidden_layers and all(one == shapes[0] for one in shapes)


def blocks_of(base: torch.nn.Module) -> list[torch.nn.Module]:
    """In the order in which they are computed."""
    return [part for part in base.modules() if isinstance(part, GradientCheckpointingLayer)]


def of_depth(config: PreTrainedConfig, few: int) -> PreTrainedConfig:
    """The same with so many blocks."""
    shorter = copy.deepcopy(config)
    text = shorter.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:few])
    text.num_hidden_layers = few
    return shorter


@contextmanager
def unpacked_for_dora() -> Iterator[None]:
    """PEFT knows a 4-bit weight by its class, which a fake one does not have."""
    theirs = peft.tuners.lora.dora.dequantize_module_weight

    def unpacked(module: torch.nn.Module) -> Any:
        weight: Any = module.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight if weight.is_meta else theirs(module)
        return bitsandbytes.functional.dequantize_4bit(weight.data, state)

    peft.tuners.lora.dora.dequantize_module_weight = unpacked
    try:
        yield
    finally:
        peft.tuners.lora.dora.dequantize_module_weight = theirs
