"""A training step without weights and without a GPU: what it holds at its peak, counted tensor by tensor.

The model, the adapter, the loss and the optimizer are those that the trainer uses, in the order in which it uses
them, on fake tensors, which have shapes and storages but no numbers (`torch._subclasses.fake_tensor`). They are fake
tensors of a CPU, because a build of torch without CUDA cannot differentiate others; what a GPU does otherwise is
in `like_cuda`.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitsandbytes
import peft.tuners.lora.dora
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.optim import GlobalOptimManager
from peft import PeftModel, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Trainer, masking_utils
from transformers.integrations import replace_with_bnb_linear
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.quantizers.base import HfQuantizer
from trl.trainer.utils import add_fused_lm_head

from app.jobs.spec import JobSpec, LoraTuning, QloraTuning, resolved
from app.planning import recipes, setups
from app.planning.dry_runs import METHODS, DryRun
from app.planning.memory import CONTEXT_BYTES, SLACK, MemoryEstimate, Moment
from worker.training import configs, like_cuda, model
from worker.training.device import Device
from worker.training.live import LiveStorages
from worker.training.logits import spare_logits

aten = torch.ops.aten

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a constant of 8 bits, and constants that share one of fp32 (bitsandbytes' NF4, twice)."""
SMALLEST_PAGED = 100_000
"""Numbers of a state that bitsandbytes pages; smaller ones stay on the device."""
DEPTHS = (3, 4)
"""Blocks of two models that stand for a deeper one of blocks that are alike: a first, a last, and some in between."""
Moments = dict[str, dict[str, int]]
"""Bytes by part at the peak of each moment of a step. A block's have its number: `forward 0`, `backward 0`."""
MOMENTS: dict[str, Moment] = {
    "start": "forward",
    "forward": "forward",
    "end": "forward",
    "loss": "loss",
    "loss again": "loss",
    "turn": "backward",
    "backward": "backward",
    "optimizer": "optimizer",
}
"""What each is called outside. `start` is before the blocks, `turn` between the loss's backward and the blocks'."""


class NoDryRun(ValueError):
    """The method's step is not known here; the message says which are."""


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
    holds_logits: bool = False
    """All logits, while the loss is differentiated: a loop of one's own that has what the model returned."""


OURS = Habits()


def dry_run(
    base: PreTrainedConfig | Path,
    spec: JobSpec,
    device: setups.Device,
    *,
    padded: bool | None = None,
    habits: Habits = OURS,
) -> DryRun:
    """Take the second step of a resolved spec, when the optimizer has its states, and evaluate a batch.

    `base`: a config, or a folder with a `config.json`. `padded`: whether rows of a batch differ in length, so that
    SDPA is handed a mask; by default where there is more than one. Every token counts as trained. Raises `TypeError`
    for a spec that is not resolved, `NoDryRun` for other methods, `TargetModulesUnusable`, and what transformers
    raises for a config that it cannot read.
    """
    if spec.method.type not in METHODS:
        raise NoDryRun(
            f"method.type: a dry run knows {' and '.join(METHODS)}, not {spec.method.type}. Ask the formula."
        )
    read = AutoConfig.from_pretrained(base, trust_remote_code=False) if isinstance(base, Path) else base
    config = copy.deepcopy(read)  # TRL writes into it
    machine = Device(device.kind, device.kind, device.precision, "sdpa")
    depth = config.get_text_config().num_hidden_layers
    with FakeTensorMode(allow_non_fake_inputs=True), _like(machine, config):
        if depth > max(DEPTHS) and _blocks_are_alike(config):
            fewer, more = (_take(_of_depth(config, few), spec, machine, habits, padded) for few in DEPTHS)
            train, evaluation = _deepened(fewer[0], more[0], depth), _deepened(fewer[1], more[1], depth)
        else:
            train, evaluation = _take(config, spec, machine, habits, padded)
    found, by_layer = _estimate(train, machine)
    return DryRun(train=found, by_layer=by_layer, evaluation=round(_estimate(evaluation, machine)[0].total))


def _take(
    config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits, padded: bool | None
) -> tuple[Moments, Moments]:
    """Of a step, and of an evaluation's batch."""
    rows = resolved(spec.hyperparameters.per_device_train_batch_size)
    length = resolved(spec.hyperparameters.max_length)
    trained = _model(config, spec, machine, habits)
    with _Answers():
        optimizer = _optimizer(trained, spec, machine)
    batch = _batch(rows, length, packed=bool(spec.hyperparameters.packing), padded=padded)
    with _watched(trained, optimizer, machine) as live, _Answers():
        _step(trained, optimizer, batch, spec, machine, habits, live)
    trained.eval()
    batch = _batch(recipes.rows_at_a_time(spec), length, packed=False, padded=padded)
    with _watched(trained, optimizer, machine) as evaluating, _Answers(), torch.no_grad():
        _loss(trained, batch, machine, habits)
    return live.highest, evaluating.highest


def _blocks_are_alike(config: PreTrainedConfig) -> bool:
    """Whether they have the same parameters, and the config says nothing of one that it does not say of all."""
    text = config.get_text_config()
    lists = [one for one in vars(text).values() if isinstance(one, list) and len(one) == text.num_hidden_layers]
    shares_keys = bool(getattr(text, "num_kv_shared_layers", None))
    if shares_keys or any(one != one[:1] * len(one) for one in lists):
        return False
    with unset_fake_temporarily(), torch.device("meta"):
        blocks = _blocks(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    shapes = [[(name, one.shape) for name, one in block.named_parameters()] for block in blocks]
    return len(blocks) == text.num_hidden_layers and all(one == shapes[0] for one in shapes)


def _blocks(base: torch.nn.Module) -> list[torch.nn.Module]:
    return [part for part in base.modules() if isinstance(part, GradientCheckpointingLayer)]


def _of_depth(config: PreTrainedConfig, few: int) -> PreTrainedConfig:
    shorter = copy.deepcopy(config)
    text = shorter.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:few])
    text.num_hidden_layers = few
    return shorter


def _deepened(fewer: Moments, more: Moments, depth: int) -> Moments:
    """What a model of so many blocks takes, from two of `DEPTHS`: each block beyond adds what one more has added.

    From block to block a moment's sum goes straight up or down, so that the highest is the first or the last.
    """
    few, many = DEPTHS
    deepened = {}
    for moment, parts in more.items():
        kind, number = _split(moment)
        last = number == many - 1
        if number not in (None, 0) and not last:
            continue
        before = fewer[f"{kind} {few - 1}" if last else moment]
        grown = {
            part: size + (size - before.get(part, 0)) * (depth - many)
            for part, size in parts.items()
            if not part.startswith("block ")
        }
        blocks = [parts.get(f"block {place}", 0) for place in range(many)]
        blocks[1:1] = blocks[1:2] * (depth - many)
        deepened[f"{kind} {depth - 1}" if last else moment] = grown | {
            f"block {place}": size for place, size in enumerate(blocks)
        }
    return deepened


def _split(moment: str) -> tuple[str, int | None]:
    """The kind, and the number of a block's."""
    kind, _, number = moment.rpartition(" ")
    return (kind, int(number)) if number.isdigit() else (moment, None)


@contextmanager
def _like(machine: Device, config: PreTrainedConfig) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(setattr, peft.tuners.lora.dora, "dequantize_module_weight", _unpack_unless_fake)
        peft.tuners.lora.dora.dequantize_module_weight = _unpacked_weight
        if machine.kind == "cuda":
            text = config.get_text_config()
            heads = getattr(text, "num_attention_heads", None)
            grouped = getattr(text, "num_key_value_heads", None) not in (None, heads)
            stack.enter_context(like_cuda.like_cuda(machine.compute_dtype, grouped_queries=grouped))
        spare_logits(machine)
        yield


_unpack_unless_fake = peft.tuners.lora.dora.dequantize_module_weight


def _unpacked_weight(module: torch.nn.Module) -> Any:
    """PEFT knows a 4-bit weight by its class, which a fake one does not have."""
    weight: Any = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight if weight.is_meta else _unpack_unless_fake(module)
    return bitsandbytes.functional.dequantize_4bit(weight.data, state)


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no such hook
    """Answers what can only be known from numbers: no question is answered yes, and every token has a label."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and the guard against it takes longer than the answers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked twice for each operation, and known at once
            return args[0].fake_device
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype is torch.bool:
            mask = args[1][0]
            return args[0].new_empty((mask.numel(), *args[0].shape[mask.dim() :]))
        if func is aten._grouped_mm.default:  # of which torch 2.13 knows the shape in bf16 alone
            return _grouped_product(*args[:3])
        return func(*args, **(kwargs or {}))


def _grouped_product(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of rows with their group's matrix, or, of two of two dimensions, a matrix for each group."""
    groups = (len(ends),) if left.dim() == right.dim() == 2 else left.shape[:-2]
    return left.new_empty((*groups, left.shape[-2], right.shape[-1]))


def _model(config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits) -> torch.nn.Module:
    """As `worker.training.model` loads it and TRL's trainer makes it ready: in shapes alone first, then with storages.

    The libraries move and cast what they make, which a fake tensor does not bear.
    """
    trained = _shapes(config, spec, machine, habits)
    _give_storages(trained, machine.compute_dtype, habits)
    return trained.train()


def _shapes(config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits) -> torch.nn.Module:
    tuning = spec.tuning
    with unset_fake_temporarily(), torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config,
            dtype=habits.base or configs.base_dtype(spec, machine),
            attn_implementation=model.attention(machine),
            trust_remote_code=False,
        )
        if isinstance(tuning, QloraTuning):
            skipped = HfQuantizer.get_modules_to_not_convert(base, None, base._keep_in_fp32_modules)
            replace_with_bnb_linear(base, skipped, configs.quantization_config(machine))
            base.is_loaded_in_4bit = True
            model.keep_4bit_weights_as_they_are(base)
        trained: torch.nn.Module = base
        if isinstance(tuning, LoraTuning):
            model.require_target_modules(base, tuning.target_modules)
            whole, tied = model.modules_to_save(base, tuning)
            wide = habits.adapter is torch.float32
            config_of_adapter = configs.lora_config(spec, tuning, whole, tied=tied)
            trained = get_peft_model(base, config_of_adapter, autocast_adapter_dtype=wide)
            if wide:
                model.keep_adapter_in_fp32(trained)
    if spec.hyperparameters.gradient_checkpointing:
        # No mode for functions is at work in a backward, so that what is computed again there needs its own.
        again = {"context_fn": lambda: (nullcontext(), like_cuda.Functions())} if machine.kind == "cuda" else {}
        base.gradient_checkpointing_enable({"use_reentrant": False, **again})
        if isinstance(tuning, LoraTuning):
            base.enable_input_require_grads()
    if habits.tiles:
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    text = config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = getattr(text, "router_aux_loss_coef", 0.0) != 0.0
    return trained


def _give_storages(trained: torch.nn.Module, compute_dtype: torch.dtype, habits: Habits) -> None:
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


def _optimizer(trained: torch.nn.Module, spec: JobSpec, machine: Device) -> torch.optim.Optimizer:
    """The trainer's, with its states: it has stepped once."""
    on_cpu = replace(machine, kind="cpu")  # arguments for a GPU can be made only where there is one
    arguments = configs.sft_config(spec, on_cpu, Path("unused"))
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, trained)
    if kind is torch.optim.AdamW and machine.kind == "cuda" and not options.get("fused"):
        options["foreach"] = True  # torch's default there
    moving = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = kind(moving, **options)
    embeddings = [part.weight for part in trained.modules() if isinstance(part, torch.nn.Embedding)]
    eight_bit = options.get("optim_bits") == 8
    exceptions = GlobalOptimManager.get_instance().pid2config
    for weight in embeddings if eight_bit else ():  # as transformers' trainer has it
        exceptions[id(weight)] = {"optim_bits": 32}
    for parameter in moving:
        parameter.grad = torch.empty_like(parameter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # which it is not
        optimizer.step()
    optimizer.zero_grad()
    for weight in embeddings if eight_bit else ():
        del exceptions[id(weight)]
    return optimizer


def _batch(rows: int, length: int, *, packed: bool, padded: bool | None) -> dict[str, torch.Tensor]:
    """As TRL's collator makes it. Packs lie in one row, with positions that restart, so that SDPA is handed a mask."""
    shape = (1, rows * length) if packed else (rows, length)
    ids = torch.empty(shape, dtype=torch.long)
    batch = {"input_ids": ids, "labels": torch.empty_like(ids)}
    if packed:
        batch["position_ids"] = torch.empty_like(ids)
    elif padded or (padded is None and rows > 1):
        batch["attention_mask"] = torch.empty_like(ids)
    return batch


@contextmanager
def _watched(trained: torch.nn.Module, optimizer: torch.optim.Optimizer, machine: Device) -> Iterator[LiveStorages]:
    """Count what lies there, and what is made while it is entered, by what makes it."""
    live = LiveStorages(like_cuda.inside if machine.kind == "cuda" else None)
    _go_on(live, "start", "ends")
    with live:
        _count_held(trained, optimizer, live, machine)
        hooks = list(_follow(trained, live))
        yield live
    for hook in hooks:
        hook.remove()


def _count_held(
    trained: torch.nn.Module, optimizer: torch.optim.Optimizer, live: LiveStorages, machine: Device
) -> None:
    paged = getattr(optimizer, "is_paged", False) and machine.kind == "cuda"
    whole = trained is _base_of(trained)
    for parameter in trained.parameters():
        live.count(parameter, "weights" if whole or not parameter.requires_grad else "adapter")
        for constant in _constants(parameter):
            live.count(constant, "quantization")
    for buffer in trained.buffers():
        live.count(buffer, "weights")
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value) and not (paged and value.numel() >= SMALLEST_PAGED):
                live.count(value, "optimizer")


def _base_of(trained: torch.nn.Module) -> Any:
    return trained.get_base_model() if isinstance(trained, PeftModel) else trained


def _constants(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    held = [value for one in (state, state.state2) if one is not None for value in vars(one).values()]
    return [value for value in held if torch.is_tensor(value)]


def _go_on(live: LiveStorages, moment: str, part: str) -> None:
    live.moment, live.part = moment, part


def _follow(trained: torch.nn.Module, live: LiveStorages) -> Iterator[Any]:
    """Have it told what is at work: a block, what lies around the blocks, the loss; and forward or backward."""
    base = _base_of(trained)

    def after_backbone(_: object, __: object, made: Any) -> None:
        _go_on(live, "loss", "loss")
        if made.last_hidden_state.requires_grad:
            made.last_hidden_state.register_hook(lambda _: _go_on(live, "turn", "temporary"))

    yield base.base_model.register_forward_pre_hook(lambda *_: _go_on(live, "start", "ends"))
    yield base.base_model.register_forward_hook(after_backbone)
    for number, block in enumerate(_blocks(base)):
        enter, leave = _around(number, live)
        yield block.register_forward_pre_hook(enter)
        yield block.register_forward_hook(leave, always_call=True)  # checkpointing breaks off where it has enough
    for parameter in trained.parameters():
        if parameter.requires_grad:
            hooked: Any = parameter  # torch types no such hook
            yield hooked.register_post_accumulate_grad_hook(lambda its: live.count(its.grad, "gradients"))


def _around(number: int, live: LiveStorages) -> tuple[Callable[..., None], Callable[..., None]]:
    """For before and for after a block computes, be it for the first time or again."""
    backward = False

    def enter(*_: object) -> None:
        nonlocal backward
        backward = live.part == "temporary"
        _go_on(live, live.moment if backward else f"forward {number}", f"block {number}")

    def leave(_: object, __: object, made: Any) -> None:
        if backward:
            _go_on(live, live.moment, "temporary")
            return
        _go_on(live, "end", "ends")
        output = made[0] if isinstance(made, tuple) else made
        if output.requires_grad:
            output.register_hook(lambda _: _go_on(live, f"backward {number}", "temporary"))

    return enter, leave


@contextmanager
def _mask_only_where_rows_differ(batch: dict[str, torch.Tensor]) -> Iterator[None]:
    """transformers looks whether positions restart, and believes they do where it cannot look."""
    before = masking_utils.find_packed_sequence_indices
    if not {"attention_mask", "position_ids"} & batch.keys():
        masking_utils.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _step(
    trained: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    spec: JobSpec,
    machine: Device,
    habits: Habits,
    live: LiveStorages,
) -> None:
    """As transformers' trainer steps. Of several micro-batches the last is taken, to which there are gradients."""
    if resolved(spec.hyperparameters.gradient_accumulation_steps) > 1:
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                live.count(parameter.grad, "gradients")
    loss: Any  # whose backward torch does not type
    loss, logits = _loss(trained, batch, machine, habits)
    _go_on(live, "loss again", "loss")
    loss.backward()
    del logits
    del loss  # whose graph holds the embeddings, and their gradient, where checkpointing asks for one
    _go_on(live, "optimizer", "temporary")
    torch.nn.utils.clip_grad_norm_(trained.parameters(), float(spec.hyperparameters.max_grad_norm))
    optimizer.step()
    optimizer.zero_grad()


def _loss(
    trained: torch.nn.Module, batch: dict[str, torch.Tensor], machine: Device, habits: Habits
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `trl.SFTTrainer.compute_loss` has it, or transformers' models themselves; and logits that somebody holds."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=machine.precision == "bf16" and habits.autocast)
    if not habits.tiles:
        with _mask_only_where_rows_differ(batch), autocast:
            outputs = trained(**batch, use_cache=False)
        return outputs.loss, outputs.logits if habits.holds_logits else None
    with _mask_only_where_rows_differ(batch), autocast:
        outputs = trained(**batch, use_cache=False, fused_lm_head=True)
    loss: torch.Tensor = (-outputs.log_probs).sum() / outputs.label_mask.sum().clamp(min=1)
    return loss if outputs.aux_loss is None else loss + outputs.aux_loss, None


def _estimate(moments: Moments, machine: Device) -> tuple[MemoryEstimate, tuple[int, ...]]:
    """The highest of the moments; and its activations, block by block."""
    sums = {moment: sum(parts.values()) for moment, parts in moments.items()}
    highest = max(sums, key=lambda moment: sums[moment])
    parts = moments[highest]
    by_number = {int(part.split()[1]): size for part, size in parts.items() if part.startswith("block ")}
    by_layer = tuple(by_number[number] for number in sorted(by_number))
    found = MemoryEstimate(
        moment=MOMENTS[_split(highest)[0]],
        weights=parts.get("weights", 0),
        quantization=parts.get("quantization", 0),
        adapter=parts.get("adapter", 0),
        gradients=parts.get("gradients", 0),
        optimizer=parts.get("optimizer", 0),
        activations=parts.get("ends", 0) + sum(by_layer),
        loss=parts.get("loss", 0),
        temporary=parts.get("temporary", 0),
        by_moment=_by_moment(sums),
    )
    if machine.kind == "cpu":
        return found, by_layer
    comes_and_goes = found.activations + found.loss + found.temporary + found.gradients
    return replace(found, slack=SLACK * comes_and_goes, context=float(CONTEXT_BYTES)), by_layer


def _by_moment(sums: dict[str, int]) -> dict[str, float]:
    highest: dict[str, float] = {}
    for said, height in sums.items():
        moment = MOMENTS[_split(said)[0]]
        highest[moment] = max(highest.get(moment, 0), height)
    return highest
