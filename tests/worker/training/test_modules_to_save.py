"""Modules of the base that are trained whole beside an adapter, and the rate of its embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.jobs.spec import JobSpec
from tests import tiny
from tests.worker.training.conftest import MakeJob, steps
from worker import messages
from worker.training import device, model, trainers
from worker.training.failures import SpecUnusable

EMBEDDINGS, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
WORDS = torch.arange(3, 35)[None]


@pytest.fixture
def untied(bases: Path) -> Path:
    """A base whose output layer has weights of its own."""
    return tiny.make_base(bases / "untied", dtype=torch.bfloat16, tied=False)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("base", "named", "saved"),
    [
        ("tiny", ["embed_tokens"], {EMBEDDINGS, HEAD}),
        ("tiny", ["embed_tokens", "lm_head"], {EMBEDDINGS, HEAD}),
        ("untied", ["embed_tokens"], {EMBEDDINGS}),
        ("untied", ["lm_head"], {HEAD}),
        ("untied", ["embed_tokens", "lm_head"], {EMBEDDINGS, HEAD}),
        ("tiny", ["norm"], {"base_model.model.model.norm.weight"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value) if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("untied")
def test_they_are_trained_and_saved_with_the_adapter(
    make_job: Any,
    run: Any,
    bases: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    named: list[str],
    saved: set[str],
    precision: str,
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    work_dir = make_job("lora", model=base, block={"modules_to_save": named, "r": 4}, validation=tiny.chat_rows(2))
    said = run(work_dir)
    assert steps(said)[-1].loss < steps(said)[0].loss

    weights = load_file(work_dir / "result/adapter_model.safetensors")
    before = load_file(bases / base / "model.safetensors")
    assert {name for name in weights if ".lora_" not in name} == saved
    for name in saved:
        own = name.removeprefix("base_model.model.")
        old = before[own if own in before else "model.embed_tokens.weight"].float()
        assert weights[name].dtype == torch.float32
        assert not torch.equal(weights[name], weights[name].bfloat16().float())  # as it was trained
        assert 1e-4 < (weights[name] - old).abs().max() < 0.1
    if base == "tiny" and HEAD in saved:
        assert torch.equal(weights[EMBEDDINGS], weights[HEAD])

    loaded = AutoModelForCausalLM.from_pretrained(bases / base, dtype=torch.float32)
    on_base = PeftModel.from_pretrained(loaded, work_dir / "result").eval()
    kept = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bases / base, dtype=torch.float32), work_dir / "checkpoints/checkpoint-8"
    ).eval()
    with torch.no_grad():
        assert torch.equal(on_base(input_ids=WORDS).logits, kept(input_ids=WORDS).logits)
        used = on_base.get_output_embeddings().weight
    assert torch.equal(used, weights[HEAD]) if HEAD in saved else not used.requires_grad


@pytest.mark.parametrize(
    ("base", "tuning", "named", "says"),
    [
        ("tiny", "lora", "embed_token", r"no modules with weights named embed_token\. It has: down_proj, embed_tokens"),
        ("tiny", "lora", "mlp", r"no modules with weights named mlp\."),
        ("tiny", "lora", "lm_head", r"the output layer is the embeddings\. Name embed_tokens"),
        ("untied", "qlora", "up_proj", r"up_proj is in 4 bits, which cannot be trained"),
    ],
)
@pytest.mark.usefixtures("untied")
def test_what_would_not_be_trained_is_refused(
    make_job: Any, run: Any, base: str, tuning: str, named: str, says: str
) -> None:
    work_dir = make_job(tuning, model=base, block={"modules_to_save": [named]})
    with pytest.raises(SpecUnusable, match=says) as caught:
        run(work_dir)
    assert caught.value.param == "tuning.modules_to_save"


def test_a_layer_that_is_trained_whole_has_no_adapter(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora", block={"modules_to_save": ["layers.1.mlp.gate_proj"], "r": 4}, max_steps=1)
    run(work_dir)
    of_gates = {name for name in load_file(work_dir / "result/adapter_model.safetensors") if ".gate_proj." in name}
    assert of_gates == {
        "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight",
        "base_model.model.model.layers.1.mlp.gate_proj.weight",
    }


@pytest.mark.parametrize(
    ("tuning", "block", "chosen"),
    [
        ("full", {}, {}),
        pytest.param("lora", {"modules_to_save": ["embed_tokens"]}, {}, marks=pytest.mark.long),
        ("lora", {"modules_to_save": ["embed_tokens"], "loraplus_lr_ratio": 4.0}, {"weight_decay": 0.1}),
        pytest.param("full", {}, {"optim": "adafactor"}, marks=pytest.mark.long),
    ],
    ids=["full", "lora", "LoRA+", "adafactor"],
)
@pytest.mark.long
def test_embeddings_have_the_rate_that_is_asked_for_and_keep_it(
    make_job: MakeJob, run: Any, bases: Path, tuning: str, block: dict[str, Any], chosen: dict[str, Any]
) -> None:
    def job(rate: float | None) -> Path:
        return make_job(
            tuning,
            method="continued_pretraining",
            rows=tiny.text_rows(16),
            block=block,
            learning_rate=1e-3,
            embedding_learning_rate=rate,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            packing=False,
            **chosen,
        )

    straight, stopped, usual, same = job(1e-4), job(1e-4), job(None), job(1e-3)
    trainer = _trainer(straight, bases / "tiny")
    rates = {id(one): group["lr"] for group in trainer.optimizer.param_groups for one in group["params"]}
    trained = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    assert {id(one) for one in trained.values()} == set(rates)
    plus = block.get("loraplus_lr_ratio", 1.0)
    for name, one in trained.items():
        expected = 1e-4 if "embed_tokens" in name else plus * 1e-3 if "lora_B" in name else 1e-3
        assert rates[id(one)] == expected, name

    whole = [message.loss for message in steps(run(straight))]
    first = [message.loss for message in steps(run(stopped, _stop_after_two))]
    [saved] = (stopped / "checkpoints").glob("checkpoint-3")
    groups = torch.load(saved / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["lr"] for group in groups if group["params"]} == {1e-4, 1e-3, plus * 1e-3}
    rest = [message.loss for message in steps(run(stopped))]
    assert len(first) == 3
    assert [*first, *rest] == pytest.approx(whole, abs=1e-6)
    as_usual = [message.loss for message in steps(run(usual))]
    assert whole != pytest.approx(as_usual, abs=1e-4)
    assert [message.loss for message in steps(run(same))] == pytest.approx(as_usual, abs=1e-6)


def test_a_rate_without_embeddings_is_refused(make_job: Any, run: Any) -> None:
    """Names that families have, and this base has not; without any the service refuses it."""
    work_dir = make_job("full", method="continued_pretraining", rows=tiny.text_rows(4), embedding_learning_rate=1e-4)
    job = json.loads((work_dir / "job.json").read_text())
    job["tuning"] = {"type": "lora", "r": 4, "lora_alpha": 8, "modules_to_save": ["norm", "wte"]}
    (work_dir / "job.json").write_text(json.dumps(job))
    with pytest.raises(SpecUnusable, match="named wte"):
        run(work_dir)


def _stop_after_two(message: Any, stop: Any) -> None:
    if isinstance(message, messages.Metrics) and message.step == 2:
        stop.wish = "save"


def _trainer(work_dir: Path, base: Path) -> Any:
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    loaded, tokenizer = model.load(base, spec, machine)
    return trainers.build(work_dir, spec, machine, loaded, tokenizer)
