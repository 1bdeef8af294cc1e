"""The dry run, from a config alone, against the second step of our trainer with weights, counted tensor by tensor."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager
from transformers import AutoModelForCausalLM

from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.memory import estimate
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of
from app.planning.step import ModelShape
from tests import tiny
from tests.worker.training.conftest import MakeJob
from tests.worker.training.counted import count, labelled
from worker.training.fake_model import Habits
from worker.training.fake_step import Rows, dry_run

Precision = Literal["fp32", "bf16"]
LONG = {"messages": [{"role": "user", "content": "Which colour? " * 12}, {"role": "assistant", "content": "Red. " * 9}]}
SHORT = {"messages": [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Red."}]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "deep": ("llama", {"num_hidden_layers": 7}),
    "mistral": ("mistral", {"sliding_window": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 32}),
    "gemma3": ("gemma3_text", {"sliding_window": 32}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 192}),
}
"""Name, `model_type`, and what its config has beyond a shape."""
ROUTED = ("mixtral", "qwen3_moe")
DENSE = tuple(family for family in FAMILIES if family not in ("llama", "deep", *ROUTED))


@dataclass(frozen=True)
class Case:
    family: str
    precision: Precision
    tuning: str
    block: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    ragged: bool = False
    """Rows of two lengths, in one batch."""

    def __str__(self) -> str:
        said = {**self.block, **self.hyperparameters, **({"ragged": True} if self.ragged else {})}
        given = ",".join(f"{name}={value}" for name, value in said.items())
        return f"{self.family}-{self.precision}-{self.tuning}-{given}"


CHECKPOINTING = {"gradient_checkpointing": True}
ACCUMULATION = {"gradient_accumulation_steps": 2, "batch_size": 4}
ATTENTION = {"target_modules": ["q_proj", "v_proj"], "r": 64}
CASES = [
    *(Case("llama", precision, "full") for precision in ("fp32", "bf16")),
    *(Case("llama", precision, "full", {}, CHECKPOINTING) for precision in ("fp32", "bf16")),
    Case("llama", "fp32", "full", {}, ACCUMULATION),
    *(Case("llama", precision, "lora") for precision in ("fp32", "bf16")),
    *(Case("llama", precision, "qlora") for precision in ("fp32", "bf16")),
    Case("llama", "fp32", "lora", ATTENTION),
    Case("llama", "bf16", "lora", {}, CHECKPOINTING),
    Case("llama", "bf16", "lora", {"lora_dropout": 0.1}),
    Case("llama", "bf16", "lora", {"use_dora": True}),
    Case("llama", "bf16", "lora", ragged=True),
    *(Case(family, "bf16", "lora", {"modules_to_save": ["embed_tokens", "lm_head"]}) for family in ("llama", "qwen2")),
    Case("llama", "bf16", "lora", {"init_lora_weights": "pissa"}),
    Case("llama", "bf16", "lora", {}, {"packing": True}),
    Case("llama", "bf16", "qlora", {}, CHECKPOINTING),
    Case("llama", "fp32", "qlora", {"use_dora": True}),
    *(Case("llama", "fp32", "full", {}, {"optim": name}) for name in ("adafactor", "adamw_torch", "adamw_bnb_8bit")),
    Case("deep", "bf16", "full", {}, CHECKPOINTING),
    Case("deep", "bf16", "lora"),
    *(Case(family, "bf16", "lora") for family in DENSE),
    *(Case(family, "fp32", "full", {}, CHECKPOINTING) for family in ROUTED),
    *(Case(family, "bf16", "lora", ATTENTION) for family in ROUTED),
]


@pytest.fixture(scope="module")
def families(bases: Path) -> Path:
    """Bases whose activations count: TRL's tile for the loss is 32,768 columns wide, however few there are."""
    tokenizer = tiny.make_tokenizer()
    shape = ModelShape(256, 3, 8, 4, 32, 704, len(tokenizer))
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    for name, (family, options) in FAMILIES.items():
        config = tiny.config_of(family, shape, **ids, max_position_embeddings=256)
        config.update(options)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(bases / name)
        tokenizer.save_pretrained(bases / name)
    return bases


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * bool(at % 8)) for at, case in enumerate(CASES)], ids=str
)
def test_the_dry_run_takes_what_a_step_of_the_trainer_takes(
    families: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", case.precision)
    rows = 8 if case.ragged else 2
    chosen: dict[str, Any] = {"batch_size": rows, "per_device_train_batch_size": rows, "packing": False, "max_steps": 2}
    chosen["train_on"] = "all"
    chosen |= case.hyperparameters
    told = [LONG, SHORT] * 4 if case.ragged else [LONG] * 8
    work_dir = make_job(case.tuning, rows=told, model=case.family, block=case.block, **chosen)
    live, spec, machine = count(work_dir, families / case.family)

    shutil.copy(families / case.family / "config.json", tmp_path / "config.json")
    known = Rows(padded=case.ragged, labelled=labelled(work_dir / "train.arrow") if case.ragged else 1.0)
    found = dry_run(tmp_path, spec, Device("cpu", machine.precision), rows=known)
    assert found.train.total == pytest.approx(live.peak, rel=0.002), found
    # The loss is the highest here, so the rest of the step is held to the same on its own.
    real = {moment: sum(parts.values()) for moment, parts in live.highest.items()}
    ours = found.train.by_moment
    assert max(ours["forward"], ours["loss"]) == pytest.approx(real["forward and loss"], rel=0.002)
    assert ours["backward"] == pytest.approx(real["backward"], rel=0.002)
    assert ours["optimizer"] == pytest.approx(real["optimizer"], rel=0.002)


def spec_of(tuning: dict[str, Any], **hyperparameters: Any) -> JobSpec:
    facts = Facts(longest_row=512, hidden_size=256, model_type="llama", context_length=512, device="cuda")
    body = {"method": {"supervised": {"hyperparameters": {"packing": False, **hyperparameters}}}, "tuning": tuning}
    return recipes.resolve(JobSpec.model_validate({"model": "m", "training_file": "f", "seed": 0, **body}), facts)


BF16 = Device("cuda", "bf16")
LAYERS = 6
SHAPE = ModelShape(256, LAYERS, 8, 4, 32, 704, 4000)


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("tuning", [{"type": "full"}, {"type": "qlora"}], ids=str)
def test_a_few_blocks_stand_for_many_that_are_alike(tuning: dict[str, Any], checkpointing: bool) -> None:
    config = tiny.config_of("llama", SHAPE)
    spec = spec_of(tuning, gradient_checkpointing=checkpointing, per_device_train_batch_size=2)
    from_a_few = dry_run(config, spec, BF16)
    config.not_alike = [0] * (LAYERS - 1) + [1]  # a list with an entry for each block, so that each is tried
    assert dry_run(config, spec, BF16) == from_a_few


LLAMA_1B = ModelShape(2048, 16, 32, 8, 64, 8192, 128256, tied_embeddings=True)


@pytest.mark.parametrize(
    ("tuning", "hyperparameters"),
    [
        # Autocast holds copies of all blocks until the forward ends, and the one gradient of embeddings and output
        # layer is summed of two.
        ({"type": "full"}, {"gradient_checkpointing": True}),
        # Adapters on 4-bit layers share their input, and SDPA keeps a mask of numbers for each block.
        pytest.param({"type": "qlora"}, {"gradient_checkpointing": False}, marks=pytest.mark.long),
        pytest.param({"type": "lora", "modules_to_save": ["embed_tokens"]}, CHECKPOINTING, marks=pytest.mark.long),
        pytest.param({"type": "lora", "use_dora": True}, {"gradient_checkpointing": False}, marks=pytest.mark.long),
        # It leaves what 4-bit layers make in fp32, and so what goes from block to block.
        *(
            pytest.param({"type": "qlora", "use_dora": True}, {"gradient_checkpointing": again}, marks=pytest.mark.long)
            for again in (True, False)
        ),
        pytest.param({"type": "lora"}, {"packing": True, "gradient_checkpointing": True}, marks=pytest.mark.long),
        pytest.param({"type": "full"}, {"optim": "adamw_bnb_8bit", **CHECKPOINTING}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_formula_knows_what_it_finds_of_a_real_shape(
    tuning: dict[str, Any], hyperparameters: dict[str, Any]
) -> None:
    spec = spec_of(tuning, per_device_train_batch_size=2, **hyperparameters)
    found = dry_run(tiny.config_of("llama", LLAMA_1B), spec, BF16)
    said = estimate(LLAMA_1B, setup_of(spec, LLAMA_1B, BF16))
    assert said.total == pytest.approx(max(found.train.by_moment.values()), rel=0.03), (said, found.train)


def test_what_bitsandbytes_remembers_of_another_optimizer_is_not_taken_for_this_one() -> None:
    spec = spec_of({"type": "lora", "r": 64}, optim="adamw_bnb_8bit")
    config = tiny.config_of("llama", SHAPE)
    alone = dry_run(config, spec, BF16).train
    GlobalOptimManager.get_instance().index2config[(0, 0)] = {"optim_bits": 32}  # of embeddings
    assert dry_run(config, spec, BF16).train == alone


def test_every_byte_at_the_peak_is_told_apart() -> None:
    spec = spec_of({"type": "qlora"}, gradient_checkpointing=False, optim="adamw_bnb_8bit", batch_size=2)
    found = dry_run(tiny.config_of("llama", SHAPE), spec, BF16)
    block = 256 * (2 * 256 + 2 * 128) + 3 * 256 * 704
    packed = LAYERS * block
    assert found.train.weights == pytest.approx(packed / 2 + 2 * 2 * 4000 * 256, rel=0.01)
    tables = LAYERS * 7 * (256 + 16 + 1) * 4  # of what the bits stand for, and the offset, a layer
    assert found.train.quantization == pytest.approx(packed * (1 / 64 + 4 / (64 * 256)) + tables, rel=0.01)
    assert len(found.by_layer) == LAYERS
    assert sum(found.by_layer) <= found.train.activations
    assert max(found.train.by_moment.values()) == found.train.total - found.train.slack - found.train.context


def test_paged_states_take_nothing_of_a_gpu() -> None:
    config = tiny.config_of("llama", SHAPE)
    on_device = dry_run(config, spec_of({"type": "full"}, optim="adamw_bnb_8bit"), BF16).train
    paged = dry_run(config, spec_of({"type": "full"}, optim="paged_adamw_8bit"), BF16).train
    trained = on_device.weights / 4
    embeddings = 4000 * 256
    # Of embeddings bitsandbytes keeps states of 32 bits, at transformers' wish.
    assert on_device.optimizer == pytest.approx(2 * (trained - embeddings) + 8 * embeddings, rel=0.02)
    # It pages neither constants, two of fp32 for each block of 256, nor what has fewer than 100,000 numbers.
    small, norms = LAYERS * (2 * 256 * 256 + 2 * 256 * 128), (2 * LAYERS + 1) * 256
    assert paged.optimizer == pytest.approx(2 * small + 8 * norms + (trained - embeddings) * 8 / 256, rel=0.01)


def test_a_gpu_takes_for_foreach_what_fused_does_not() -> None:
    config = tiny.config_of("llama", SHAPE)
    foreach = dry_run(config, spec_of({"type": "full"}, optim="adamw_torch"), BF16).train
    fused = dry_run(config, spec_of({"type": "full"}, optim="adamw_torch_fused"), BF16).train
    square_roots = foreach.by_moment["optimizer"] - fused.by_moment["optimizer"]
    assert square_roots == pytest.approx(fused.weights, rel=0.02)


def test_dropout_masks_have_a_byte_a_number_on_a_gpu() -> None:
    config = tiny.config_of("llama", SHAPE)

    def before_the_backward(dropout: float, device: Device) -> float:
        tuning = {"type": "lora", "target_modules": ["q_proj"], "lora_dropout": dropout}
        spec = spec_of(tuning, gradient_checkpointing=False, per_device_train_batch_size=1)
        return dry_run(config, spec, device).train.by_moment["loss"]

    # Of what adapters are given; but the first block's needs no gradient. The numbers themselves are kept in any case.
    masked = (LAYERS - 1) * 512 * 256
    for device, width in ((Device("cuda", "fp32"), 1), (Device("cpu", "fp32"), 4)):
        more = before_the_backward(0.1, device) - before_the_backward(0.0, device)
        assert more == pytest.approx(masked * width, rel=0.02)


@pytest.mark.long
def test_transformers_own_loss_holds_every_logit_three_times_in_fp32() -> None:
    spec = spec_of({"type": "lora"}, gradient_checkpointing=False, per_device_train_batch_size=2)
    logits = 2 * 512 * 4000
    activations = []
    for holds, width in ((False, 12), (True, 12 + 2)):
        habits = Habits(autocast=False, tiles=False, holds_outputs=holds)
        found = dry_run(tiny.config_of("llama", SHAPE), spec, BF16, habits=habits).train
        assert found.moment == "loss"
        assert found.loss == pytest.approx(width * logits, rel=0.02)
        activations.append(found.activations)
    without, with_cache = activations
    keys_and_values = 2 * LAYERS * 2 * 512 * SHAPE.num_kv_heads * SHAPE.head_dim
    assert with_cache - without == pytest.approx(2 * keys_and_values, rel=0.05)
