"""Shapes read from configs, against the models that transformers makes of the same configs."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of, targets_of
from app.planning.shapes import NotPlannable, shape_of
from app.planning.step import TrainingSetup, trained_params

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 500,
    "pad_token_id": 0,
}
MANY = {"num_key_value_heads": 4}  # there are no groups of heads
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
    "granite": {},
    "olmo2": {},
    "phi": {},
    "phi3": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {},
    "gpt_neox": MANY,
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 160} | MANY,
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 64} | MANY,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
}


def made(family: str) -> tuple[dict[str, Any], Any]:
    config = AutoConfig.for_model(family, **SMALL | FAMILIES[family])
    with torch.device("meta"):
        return config.to_dict(), AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_the_parameters_that_its_config_says(family: str) -> None:
    """But for biases, positions and the norms within attention, some per cent of so small a model."""
    config, model = made(family)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(config).params == pytest.approx(counted, rel=0.08)


@pytest.mark.parametrize("family", FAMILIES)
def test_headers_of_weights_count_exactly_and_tell_whether_embeddings_are_tied(family: str) -> None:
    config, model = made(family)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tensors = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shape = shape_of(config | {"tie_word_embeddings": not tied}, tensors=tensors)
    assert shape.params == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied_embeddings == tied


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_all_linear_layers_are_as_large_as_peft_makes_them(family: str) -> None:
    config, model = made(family)
    shape = shape_of(config)
    spec = JobSpec.model_validate({"model": "m", "training_file": "f", "tuning": {"type": "lora", "r": 8}})
    assert spec.tuning.type == "lora"
    peft = get_peft_model(
        model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    setup = TrainingSetup("lora", 1, 1, rank=8, targets=targets_of(spec.tuning, shape))
    assert trained_params(shape, setup) == peft.get_nb_trainable_parameters()[0]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("named", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["gate_proj", "norm"]])
@pytest.mark.parametrize("tied", [True, False])
def test_modules_that_are_trained_whole_are_as_large_as_peft_makes_them(named: list[str], tied: bool) -> None:
    config = AutoConfig.for_model("llama", **SMALL, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict())
    tuning = {"type": "lora", "r": 8, "lora_alpha": 16, "modules_to_save": named}
    spec = JobSpec.model_validate({"model": "m", "training_file": "f", "tuning": tuning})
    resolved = recipes.resolve(spec, Facts(64, 64, "llama", 256, "cpu"))
    peft = get_peft_model(
        model,
        LoraConfig(
            r=8,
            target_modules="all-linear",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
            modules_to_save=[name.replace("norm", "model.norm") for name in named],  # which it takes for all norms
            ensure_weight_tying=tied and "embed_tokens" in named,
        ),
    )
    setup = setup_of(resolved, shape, Device("cpu", "fp32"))
    assert trained_params(shape, setup) == peft.get_nb_trainable_parameters()[0]


def test_of_a_model_of_pictures_and_text_the_text_is_planned() -> None:
    config, _ = made("gemma3_text")
    whole = {"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 9}}
    assert shape_of(whole) == shape_of(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba", "ssm_state_size": 16}, "state-space layers"),
        (SMALL | {"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"model_type": "llama", "hidden_size": 64}, "config.json has no num_attention_heads or n_head"),
        (SMALL | {"vocab_size": "many"}, "config.json has no vocab_size"),
        (SMALL | {"hidden_size": -1}, "config.json has no hidden_size or n_embd or d_model"),
    ],
)
def test_what_cannot_be_planned_says_why(config: dict[str, Any], said: str) -> None:
    with pytest.raises(NotPlannable, match=said):
        shape_of(config)
