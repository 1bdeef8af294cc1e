"""How our trainer trains a resolved spec, in the formula's terms: what `worker/training/configs.py` asks of TRL."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, LoraTuning, QloraTuning, Tuning, resolved
from app.planning.step import ATTENTION, FULL_LOSS, ModelShape, Role, TrainingSetup, Weights

STATES = {
    "adamw_torch": (8.0, 4.0),
    "adamw_torch_fused": (8.0, 0.0),
    "adamw_bnb_8bit": (2.0 + 2 * 4 / 256, 0.0),  # and an fp32 maximum for each block of 256 (Dettmers et al. 2022)
    "paged_adamw_8bit": (2.0 + 2 * 4 / 256, 0.0),
    "paged_adamw_32bit": (8.0, 0.0),
    "adafactor": (0.02, 4.0),  # a row and a column instead of a matrix (Shazeer and Stern 2018), and the update
}
"""Bytes a trained parameter by optimizer: of its states, and of what a step holds beside them."""
LOSS_TILE = {"cuda": (4096, 32768), "cpu": (512, 32768)}
"""Tokens and columns of the vocabulary that logits are computed for at a time: TRL 1.16's, but for the tokens on CPUs.

512 are about as fast there as TRL's 4,096 (1.0 against 1.3 s for 300 tokens of SmolLM2-135M, 4.7 against 4.0 for 1,028;
processor time, on busy cores), and their copies in fp32 take 320 MiB at most, where they took 2.5 GiB.
"""
TILE_COPIES = 5
"""Of a tile in fp32 while TRL differentiates it without Triton, as on a CPU: logits, probabilities, gradients."""

PAIRS = ("dpo", "orpo", "simpo", "reward")
"""Methods of which a row is two sequences in one batch."""
REFERENCED = ("dpo", "kto")
"""Methods that compare with the model before training; `reinforcement` does so where it has a beta."""
WITHOUT_DROPOUT = (*PAIRS, "kto")
"""Methods whose trainers turn it off, whatever `lora_dropout` says: TRL's `disable_dropout` is theirs by default."""
LOGIT_BYTES = {"orpo": 18.0, "simpo": 16.0}
"""A logit, for methods whose trainers (`trl.experimental`) compute all at once: in fp32, as accelerate hands them out,
with three gradients of that size on their way through slices; and for ORPO's likelihood half of them once more."""

ROLES: dict[str, tuple[Role, ...]] = {
    "q_proj": ("q",),
    "k_proj": ("k",),
    "v_proj": ("v",),
    "o_proj": ("o",),
    "out_proj": ("o",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "qkv_proj": ("q", "k", "v"),
    "query_key_value": ("q", "k", "v"),
    "c_attn": ("q", "k", "v"),
    "gate_up_proj": ("gate", "up"),
    "fc1": ("up",),
    "fc2": ("down",),
    "c_fc": ("up",),
    "dense": ("o",),
    "dense_h_to_4h": ("up",),
    "dense_4h_to_h": ("down",),
}
"""What families call their linear layers."""


@dataclass(frozen=True, slots=True)
class Device:
    """What decides how a job is trained there."""

    kind: Literal["cpu", "cuda"]
    precision: Literal["bf16", "fp32"]


class Saved(TypedDict, total=False):
    """Those fields of a setup that `modules_to_save` decides."""

    trains_embeddings: bool
    trains_head: bool
    saved_params: int


def setup_of(spec: JobSpec, shape: ModelShape, device: Device, *, goes_on: bool = False) -> TrainingSetup:
    """The step of a resolved spec. `goes_on`: see `Facts`. Raises `TypeError` for one that is not resolved."""
    given, tuning = spec.hyperparameters, spec.tuning
    states, step = STATES[given.optim]
    rows = resolved(given.per_device_train_batch_size)
    method = spec.method.type
    weights: Weights = "fp32" if tuning.type == "full" else device.precision
    # transformers hands SDPA a mask where rows of a batch differ in length, or lie in a pack; it then copies keys and
    # values for each query head.
    masked = rows > 1 or method in PAIRS or bool(given.packing)
    return TrainingSetup(
        tuning=tuning.type,
        micro_batch=2 * rows if method in PAIRS else rows,
        length=resolved(given.max_length),
        weights="nf4_double" if isinstance(tuning, QloraTuning) else weights,
        compute=device.precision,
        autocast=device.precision == "bf16",
        trained="fp32",
        state_bytes=states,
        step_bytes=step if device.kind == "cuda" else 0.0,  # on a CPU torch goes parameter by parameter
        vocabulary_state_bytes=8.0 if "8bit" in given.optim else None,
        states_in_host_memory=given.optim.startswith("paged") and device.kind == "cuda",
        accumulates=resolved(given.gradient_accumulation_steps) > 1,
        **_saved(tuning, shape),
        rank=resolved(tuning.r) if isinstance(tuning, LoraTuning) else 0,
        targets=targets_of(tuning, shape) if isinstance(tuning, LoraTuning) else frozenset(),
        dropout=isinstance(tuning, LoraTuning) and tuning.lora_dropout > 0 and method not in WITHOUT_DROPOUT,
        mask_bytes=1.0 if device.kind == "cuda" else 4.0,
        use_dora=isinstance(tuning, LoraTuning) and tuning.use_dora,
        checkpointing=bool(given.gradient_checkpointing),
        attention="eager" if shape.keeps_scores else "flash",
        repeats_kv=masked or shape.keeps_scores,
        masked=masked and not shape.keeps_scores,
        shares_inputs=isinstance(tuning, QloraTuning) and device.kind == "cuda" and device.precision == "bf16",
        fused_qkv=any("q" in group for group in shape.fused),
        loss_tile=None if method in LOGIT_BYTES else LOSS_TILE[device.kind],
        tile_copies=0 if device.kind == "cuda" else TILE_COPIES,
        loss_bytes=LOGIT_BYTES.get(method, FULL_LOSS),
        # SimPO has no likelihood, so no log-probabilities of all tokens: logits, and their copy in fp32.
        forward_logit_bytes=(6.0 if device.precision == "bf16" else 4.0) if method == "simpo" else 8.0,
        reference=tuning.type == "full" and has_reference(spec),
        copies_adapter=copies_adapter(spec, goes_on=goes_on),
        loss_rows=written(spec),
        generated=generated_at_once(spec),
        prompt_length=_prompt_length(spec),
        scores=method == "reward",
    )


def has_reference(spec: JobSpec) -> bool:
    """Whether a resolved spec compares with the model before training."""
    own = spec.hyperparameters
    return spec.method.type in REFERENCED or (isinstance(own, ReinforcementHyperparameters) and own.beta != 0)


def copies_adapter(spec: JobSpec, *, goes_on: bool) -> bool:
    """Whether the reference is a copy of the adapter, as TRL makes one of an adapter that it is given.

    It is given those that go on training, and those that begin as a part of the base. A new one that begins as nothing
    is turned off instead.
    """
    tuning = spec.tuning
    return isinstance(tuning, LoraTuning) and (goes_on or tuning.init_lora_weights is not True) and has_reference(spec)


def written(spec: JobSpec) -> float:
    """Share of the tokens that may be trained on: all, but of answers to prompts those that the model wrote itself."""
    own = spec.hyperparameters
    if not isinstance(own, ReinforcementHyperparameters):
        return 1.0
    return resolved(own.max_completion_length) / resolved(own.max_length)


def generated_at_once(spec: JobSpec) -> int:
    """Answers that TRL has the model write side by side: all of a step; 0 of methods that only read."""
    own = spec.hyperparameters
    if not isinstance(own, ReinforcementHyperparameters):
        return 0
    return resolved(own.per_device_train_batch_size) * resolved(own.gradient_accumulation_steps)


def _prompt_length(spec: JobSpec) -> int:
    own = spec.hyperparameters
    if not isinstance(own, ReinforcementHyperparameters):
        return 0
    return max(1, resolved(own.max_length) - resolved(own.max_completion_length))


def targets_of(tuning: LoraTuning, shape: ModelShape) -> frozenset[Role]:
    """Which layers get an adapter."""
    layers = frozenset((*ATTENTION, *shape.mlp)) - _roles(tuning.modules_to_save)
    return layers if tuning.target_modules == "all-linear" else layers & _roles(tuning.target_modules)


def _roles(names: Iterable[str]) -> frozenset[Role]:
    return frozenset(role for name in names for role in ROLES.get(name.rsplit(".", 1)[-1], ()))


def _saved(tuning: Tuning, shape: ModelShape) -> Saved:
    """What is trained whole beside an adapter: by names that linear layers and norms have, in all blocks alike."""
    if not isinstance(tuning, LoraTuning):
        return {}
    named, tied = tuning.words_to_save, shape.tied_embeddings
    roles = _roles(tuning.modules_to_save) & {*ATTENTION, *shape.mlp}
    params = sum(inputs * outputs for inputs, outputs in map(shape.linear, roles)) * shape.num_layers
    vector = shape.hidden_size * (1 if shape.norm == "rms" else 2)
    for name in tuning.modules_to_save:
        last = name.rsplit(".", 1)[-1]
        if "norm" in last or last.startswith("ln_"):
            params += vector * (
                1 if last in ("norm", "ln_f", "final_layer_norm", "final_layernorm") else shape.num_layers
            )
    return {
        "trains_embeddings": "embeddings" in named or (tied and bool(named)),
        "trains_head": "head" in named or (tied and bool(named)),
        "saved_params": params,
    }
