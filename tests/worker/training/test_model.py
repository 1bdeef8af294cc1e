"""Weights: what moves, what stays exact, and which base it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.jobs.spec import JobSpec
from app.planning.recipes import FULL, width_factor
from app.planning.step import ModelShape
from tests import tiny
from worker.training import configs, model, trainers
from worker.training.base import BaseChanged
from worker.training.device import Device
from worker.training.failures import TargetModulesUnusable

CPU = Device("cpu", "cpu", "fp32", "sdpa")


def _spec(tuning: str, **block: Any) -> JobSpec:
    body = {"model": "tiny", "training_file": "file-1", "tuning": {"type": tuning, **block}}
    return JobSpec.model_validate_json(json.dumps(body))


def _quantized(base: Path) -> Any:
    spec = _spec("qlora", r=8, lora_alpha=16)
    loaded, _ = model.load(base, spec, CPU)
    torch.manual_seed(0)
    return get_peft_model(loaded, configs.lora_config(spec, spec.tuning))  # type: ignore[arg-type]  # qlora is a lora


def _gradient(adapted: Any) -> torch.Tensor:
    """Of one adapter matrix far from the loss, so that the layers above it count."""
    ids = torch.arange(3, 35)[None]
    adapted.train()
    adapted.zero_grad()
    adapted(input_ids=ids, labels=ids).loss.backward()
    [gradient] = [
        part.grad
        for name, part in adapted.named_parameters()
        if name.endswith("layers.0.mlp.down_proj.lora_B.default.weight")
    ]
    found: torch.Tensor = gradient.clone()
    return found


def _evaluate(adapted: Any) -> None:
    adapted.eval()
    with torch.no_grad():
        adapted(input_ids=torch.arange(3, 35)[None])


def test_an_evaluation_leaves_4_bit_gradients_as_they_were(bases: Path) -> None:
    adapted = _quantized(bases / "tiny")
    before = _gradient(adapted)
    _evaluate(adapted)

    assert torch.equal(_gradient(adapted), before)


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks on CPUs with AVX512-BF16 only")
def test_without_our_line_an_evaluation_spoils_them(bases: Path) -> None:
    adapted = _quantized(bases / "tiny")
    for part in adapted.modules():
        if isinstance(part, Linear4bit):
            part.support_avx512bf16_for_cpu = True
    before = _gradient(adapted)
    _evaluate(adapted)

    assert not torch.allclose(_gradient(adapted), before, rtol=0.1)


def test_a_qlora_base_is_in_4_bits_and_its_adapter_in_fp32(make_job: Any, run: Any, bases: Path) -> None:
    loaded, _ = model.load(bases / "tiny", _spec("qlora"), CPU)
    layers = [part for part in loaded.modules() if isinstance(part, Linear4bit)]
    assert len(layers) == 14
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested

    work_dir = make_job("qlora", n_epochs=1)
    run(work_dir)
    adapter = load_file(work_dir / "result" / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    # Trained in bf16 and saved in fp32 it would survive the way through bf16.
    assert any(not torch.equal(weight.bfloat16().float(), weight) for weight in adapter.values())


def test_a_reward_model_s_new_layer_is_trained_in_fp32(make_job: Any, bases: Path) -> None:
    """PEFT trains it beside the adapter, in the type that the base has."""
    pair = {"prompt": "Which colour?", "chosen": "Red.", "rejected": "Tan."}
    work_dir = make_job("lora", rows=[pair] * 8, method="reward")
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    in_bf16 = Device("cpu", "cpu", "bf16", "sdpa")
    trained = trainers.build(work_dir, spec, in_bf16, *model.load(bases / "tiny", spec, in_bf16)).model
    moving = {name: one.dtype for name, one in trained.named_parameters() if one.requires_grad}
    assert any("score" in name for name in moving)
    assert set(moving.values()) == {torch.float32}


def test_4_bit_weights_count_as_what_they_hold(bases: Path) -> None:
    plain, _ = model.load(bases / "tiny", _spec("lora"), CPU)
    quantized, _ = model.load(bases / "tiny", _spec("qlora"), CPU)

    assert model.count_parameters(quantized)[1] == model.count_parameters(plain)[1] == plain.num_parameters()


def test_a_full_fine_tune_at_its_recipes_rate_moves_over_90_percent_of_the_weights(make_job: Any, run: Any) -> None:
    """Measured where it happens, on the fp32 weights in memory; rounding to the base's bf16 for publication loses some
    of it, and metrics.json says both.
    """
    rate = FULL.learning_rate * width_factor("llama", 64)
    work_dir = make_job("full", rows=tiny.chat_rows(32), n_epochs=2, learning_rate=rate, batch_size=8)
    run(work_dir)
    report = json.loads((work_dir / "result" / "metrics.json").read_text())

    assert report["weights_moved"] > 0.9
    assert 0 < report["weights_moved_published"] < report["weights_moved"]


def test_the_share_that_moved_is_counted_against_the_base(make_job: Any, run: Any, bases: Path) -> None:
    work_dir = make_job("full", n_epochs=1, max_steps=1, warmup_ratio=0.5)  # the first warm-up step has rate 0
    run(work_dir)
    report = json.loads((work_dir / "result" / "metrics.json").read_text())

    assert report["weights_moved"] == report["weights_moved_published"] == 0
    published, base = load_file(work_dir / "result" / "model.safetensors"), load_file(bases / "tiny/model.safetensors")
    assert all(torch.equal(published[name], weight) for name, weight in base.items())


def test_a_base_that_changed_since_preparing_is_refused(
    make_job: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.make_base(tmp_path / "models" / "mine")
    monkeypatch.setenv("FINETUNED_MODELS_DIR", str(folder.parent))
    work_dir = make_job("lora", model="mine")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(BaseChanged, match="weights_sha256"):
        run(work_dir)


@pytest.mark.parametrize("name", ["q_porj", "lm_head", "norm"])
def test_target_modules_that_the_base_lacks_are_refused_by_name(make_job: Any, run: Any, name: str) -> None:
    work_dir = make_job("lora", block={"target_modules": ["v_proj", name]})

    with pytest.raises(TargetModulesUnusable, match=f"named {name} .*down_proj, gate_proj, k_proj"):
        run(work_dir)


def test_an_adapter_goes_on_the_modules_that_were_named(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora", n_epochs=1, block={"target_modules": ["v_proj", "layers.0.mlp.down_proj"]})
    run(work_dir)

    names = load_file(work_dir / "result" / "adapter_model.safetensors")
    assert {name.split(".model.", 1)[1].split(".lora_")[0] for name in names} == {
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.0.mlp.down_proj",
    }


def test_a_family_that_cannot_have_sdpa_is_loaded_with_what_it_has(bases: Path) -> None:
    """Gemma 2, which transformers refuses to load with SDPA."""
    shape = ModelShape(32, 2, 2, 1, 16, 64, len(tiny.make_tokenizer()))
    folder = bases / "gemma2"
    AutoModelForCausalLM.from_config(tiny.config_of("gemma2", shape)).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    loaded, _ = model.load(folder, _spec("lora"), CPU)
    assert loaded.config._attn_implementation == "eager"
    again, _ = model.load(bases / "tiny", _spec("lora"), CPU)
    assert again.config._attn_implementation == "sdpa"
