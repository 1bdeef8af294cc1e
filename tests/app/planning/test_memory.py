"""What a training step takes: parameters as PEFT counts them, and bytes as real steps hold them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.memory import estimate
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of
from app.planning.step import ModelShape, Role, TrainingSetup, Weights, trained_params
from tests import tiny

LLAMA_3_8B = ModelShape(4096, 32, 32, 8, 128, 14336, 128256)
LLAMA_3_2_3B = ModelShape(3072, 28, 24, 8, 128, 8192, 128256, tied_embeddings=True)
LLAMA_3_2_1B = ModelShape(2048, 16, 32, 8, 64, 8192, 128256, tied_embeddings=True)
LLAMA_2_7B = ModelShape(4096, 32, 32, 32, 128, 11008, 32000)
LLAMA_2_13B = ModelShape(5120, 40, 40, 40, 128, 13824, 32000)
LLAMA_3_70B = ModelShape(8192, 80, 64, 8, 128, 28672, 128256)
MISTRAL_7B = ModelShape(4096, 32, 32, 8, 128, 14336, 32000)
TINYLLAMA = ModelShape(2048, 22, 32, 4, 64, 5632, 32000)
QWEN_2_5_7B = ModelShape(3584, 28, 28, 4, 128, 18944, 152064)
QWEN_2_5_05B = ModelShape(896, 24, 14, 2, 64, 4864, 151936, tied_embeddings=True)
QWEN_3_8B = ModelShape(4096, 36, 32, 8, 128, 12288, 151936)
GEMMA_2_2B = ModelShape(2304, 26, 8, 4, 256, 9216, 256000, tied_embeddings=True)
SMOLLM2_135M = ModelShape(576, 30, 9, 3, 64, 1536, 49152, tied_embeddings=True)

SHAPES = {
    "llama": [LLAMA_3_8B, LLAMA_3_2_3B, LLAMA_3_2_1B, LLAMA_2_7B, LLAMA_2_13B, LLAMA_3_70B, TINYLLAMA, SMOLLM2_135M],
    "mistral": [MISTRAL_7B],
    "qwen2": [QWEN_2_5_7B, QWEN_2_5_05B],
    "qwen3": [QWEN_3_8B],
    "gemma2": [GEMMA_2_2B],
}
ALL: frozenset[Role] = frozenset(("q", "k", "v", "o", "gate", "up", "down"))
NAMES: dict[Role, str] = {role: f"{role}_proj" for role in ALL}


def on_meta(family: str, shape: ModelShape) -> Any:
    """The model as transformers makes it, without weights."""
    config = tiny.config_of(family, shape)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def lora(rank: int, targets: frozenset[Role] = ALL, **options: Any) -> TrainingSetup:
    return TrainingSetup("lora", 1, 512, rank=rank, targets=targets, **options)


def test_the_figure_that_everybody_knows() -> None:
    assert trained_params(LLAMA_3_8B, lora(16)) == 41_943_040


@pytest.mark.parametrize(
    ("family", "shape"), [(family, shape) for family, shapes in SHAPES.items() for shape in shapes], ids=str
)
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 16},
        {"rank": 64, "targets": frozenset({"q", "v"})},
        {"rank": 8, "use_dora": True},
    ],
    ids=["all linear", "q and v", "DoRA"],
)
def test_trained_parameters_are_those_that_peft_makes(family: str, shape: ModelShape, options: dict[str, Any]) -> None:
    setup = lora(**options)
    config = LoraConfig(
        r=setup.rank,
        target_modules=[NAMES[role] for role in setup.targets],
        use_dora=setup.use_dora,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    # One block is enough for the count of each, and saves a minute of building 70 billion parameters of nothing.
    one = replace(shape, num_layers=1)
    peft = get_peft_model(on_meta(family, one), config, low_cpu_mem_usage=True)
    assert trained_params(one, setup) == peft.get_nb_trainable_parameters()[0]
    assert trained_params(shape, setup) == shape.num_layers * trained_params(one, setup)


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        (LLAMA_3_8B, 8_030_261_248),
        (LLAMA_3_2_3B, 3_212_749_824),
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_3_70B, 70_553_706_496),
        (TINYLLAMA, 1_100_048_384),
        (SMOLLM2_135M, 134_515_008),
    ],
    ids=str,
)
def test_all_parameters_are_those_that_their_makers_published(shape: ModelShape, params: int) -> None:
    assert shape.params == params


def test_nf4_takes_what_the_paper_says() -> None:
    """0.5 bytes and constants: 0.5625 a parameter, or 0.516 with double quantization; embeddings and head stay bf16."""
    few = LLAMA_3_8B.block_params * LLAMA_3_8B.num_layers
    rest = 2 * (LLAMA_3_8B.params - few)
    published: dict[Weights, float] = {"nf4": 0.5625, "nf4_double": 0.5159}
    for weights, each in published.items():
        found = estimate(LLAMA_3_8B, replace(lora(16), tuning="qlora", weights=weights))
        assert found.weights + found.quantization == pytest.approx(each * few + rest, rel=1e-4)


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter_and_copies() -> None:
    setup = TrainingSetup("full", 1, 16, weights="fp32", autocast=True, checkpointing=True, accumulates=True)
    found = estimate(LLAMA_3_8B, setup)
    assert found.weights + found.gradients + found.optimizer == 16 * LLAMA_3_8B.params


@pytest.mark.parametrize(
    ("better", "options"),
    [
        ("checkpointing", {"checkpointing": True}),
        ("4 bits", {"weights": "nf4_double"}),
        ("shorter rows", {"length": 256}),
        ("8-bit states", {"state_bytes": 2.03}),
        ("a lower rank", {"rank": 8}),
        ("chunked loss", {"loss_bytes": 3.0}),
        ("two GPUs", {"shards": 2}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_said_to_save_memory_does(better: str, options: dict[str, Any]) -> None:
    setup = replace(lora(64), micro_batch=4)
    assert estimate(LLAMA_3_8B, replace(setup, **options)).total < estimate(LLAMA_3_8B, setup).total


def of(method: str, **tuning: Any) -> TrainingSetup:
    block = {"grader": tiny.GRADER} if method == "reinforcement" else {}
    asked = {"method": {"type": method, method: block}, "tuning": {"type": "lora", **tuning}}
    body = {"model": "m", "training_file": "f", **asked}
    facts = Facts(longest_row=512, hidden_size=4096, model_type="llama", context_length=8192, device="cuda")
    return setup_of(recipes.resolve(JobSpec.model_validate(body), facts), LLAMA_3_8B, Device("cuda", "bf16"))


@pytest.mark.parametrize(("method", "copies"), [("dpo", 1), ("kto", 1), ("orpo", 0)])
def test_an_adapter_that_begins_as_a_part_of_the_base_is_compared_with_a_copy(method: str, copies: int) -> None:
    saved = {"modules_to_save": ["embed_tokens"]}
    begun, as_nothing = (estimate(LLAMA_3_8B, of(method, init_lora_weights=how, **saved)) for how in ("pissa", True))
    vocabulary = LLAMA_3_8B.vocabulary_params
    assert begun.reference == copies * (4 * 41_943_040 + 2 * vocabulary)  # whole modules in the base's own type
    assert begun.total == pytest.approx(as_nothing.total + begun.reference, rel=1e-6)


def test_trainers_that_turn_dropout_off_keep_no_masks() -> None:
    for method, drops in (("supervised", True), ("reinforcement", True), ("dpo", False), ("reward", False)):
        assert of(method, lora_dropout=0.1).dropout is drops
