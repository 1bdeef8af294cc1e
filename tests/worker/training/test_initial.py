"""Adapters that begin as a part of the base: what is published is for the base as it is."""

import json
import math
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from app.jobs.prepared import Parent, Prepared
from app.jobs.spec import JobSpec, LoraTuning
from app.planning import artifacts
from app.planning.setups import Device, setup_of
from app.planning.shapes import shape_of
from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.training import initial
from worker.training.failures import SpecUnusable

ROWS = tiny.prompt_rows(16)
WORDS = torch.arange(3, 35)[None]


@pytest.mark.parametrize(
    "block",
    [
        {"init_lora_weights": "pissa", "r": 8, "lora_alpha": 16},
        {"init_lora_weights": "pissa_niter_16", "r": 8, "lora_alpha": 3, "use_rslora": True},
        {"init_lora_weights": "olora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        {"init_lora_weights": "pissa", "r": 8, "lora_alpha": 16, "modules_to_save": ["model.norm", "embed_tokens"]},
    ],
    ids=["PiSSA", "PiSSA, about, with rsLoRA", "OLoRA", "PiSSA beside modules trained whole"],
)
def test_on_the_untouched_base_the_result_is_the_model_that_was_trained(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, block: dict[str, Any]
) -> None:
    """Which is a bare TRL script's here, of the same losses, with its base as training left it."""
    work_dir = make_job("lora", rows=ROWS, block=block, learning_rate=1e-3)
    ours = [message.loss for message in steps(run(work_dir))]
    bare = bare_trl.build(
        bases / "tiny",
        work_dir / "training_file",
        json.loads((work_dir / "job.json").read_text()),
        tmp_path / "out",
        torch.float32,
    )
    bare.train()
    assert ours == pytest.approx([one["loss"] for one in bare.state.log_history if "loss" in one], abs=1e-5)

    on_base = _on_base(bases, work_dir / "result")
    base = AutoModelForCausalLM.from_pretrained(bases / "tiny", dtype=torch.float32).eval()
    with torch.no_grad():
        trained, published, before = (model(input_ids=WORDS).logits for model in (bare.model.eval(), on_base, base))
    torch.testing.assert_close(published, trained, atol=1e-4, rtol=0)
    assert (published - before).abs().max() > 5e-3
    planned = _planned_bytes(bases / "tiny", work_dir)
    assert planned == (work_dir / "result" / "adapter_model.safetensors").stat().st_size
    config = json.loads((work_dir / "result" / "adapter_config.json").read_text())
    tuning = _tuning(work_dir).published
    assert (
        (config["r"], config["lora_alpha"]) == (tuning.r, tuning.lora_alpha) == (2 * block["r"], config["lora_alpha"])
    )
    assert config["init_lora_weights"] is True


def test_a_checkpoint_is_published_for_the_untouched_base_too(make_job: Any, run: Any, bases: Path) -> None:
    work_dir = make_job("lora", block={"init_lora_weights": "pissa", "r": 8}, validation=tiny.chat_rows(1), n_epochs=2)
    measured = {one.step: one.loss for one in run(work_dir) if isinstance(one, messages.Eval)}
    [row] = Dataset.from_file(str(work_dir / "validation.arrow"))
    given = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}

    for step in (4, 8):
        offered = work_dir / messages.OFFERED / f"checkpoint-{step}"
        with torch.no_grad():
            loss = _on_base(bases, offered)(**given).loss.item()
        assert loss == pytest.approx(measured[step], abs=1e-5)
        kept = load_file(work_dir / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        assert len(kept[name]) == 8  # to go on from, as it is trained
        assert len(load_file(offered / "adapter_model.safetensors")[name]) == 16


def test_a_later_attempt_takes_out_what_the_first_one_took(make_job: Any, run: Any) -> None:
    """Not what it finds itself, which on another machine may be something else: it travels with the checkpoint."""
    block = {"init_lora_weights": "pissa", "r": 8}
    straight, stopped = make_job("lora", block=block), make_job("lora", block=block)
    whole = steps(run(straight))
    run(stopped, _stop_after_two)
    file = stopped / "checkpoints" / initial.FILE
    save_file({name: torch.zeros_like(one) for name, one in load_file(file).items()}, file)

    assert steps(run(stopped))[0].loss == pytest.approx(whole[3].loss, abs=1e-6)


def test_preferences_are_compared_with_the_untouched_base(make_job: Any, run: Any) -> None:
    """So the first loss says that nothing has changed yet: ln 2. The base without the part has other preferences."""
    options = {"rows": tiny.preference_rows(16), "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    block = {"init_lora_weights": "pissa", "r": 16}
    straight, stopped = (make_job("lora", method="dpo", block=block, **options) for _ in range(2))

    losses = [message.loss for message in steps(run(straight))]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.01
    assert [one.loss for _ in range(2) for one in steps(run(stopped, _stop_after_two))] == pytest.approx(
        losses, abs=1e-6
    )


def test_a_result_goes_on_as_an_adapter_of_twice_the_rank(make_job: Any, run: Any) -> None:
    first = make_job("lora", block={"init_lora_weights": "olora", "r": 8}, learning_rate=1e-3)
    losses = [message.loss for message in steps(run(first))]
    block = _tuning(first).published.model_dump(exclude={"type"})
    assert (block["r"], block["init_lora_weights"]) == (16, True)
    second = make_job("lora", block=block, learning_rate=1e-3)
    shutil.copytree(first / "result", second / "parent")
    base = Prepared.model_validate_json((first / "prepared.json").read_text()).base
    parent = Parent(id="ft:tiny:default::1", kind="adapter", base=base)
    (second / "parent.json").write_text(parent.model_dump_json())

    assert steps(run(second))[0].loss < losses[4] < losses[0] - 0.1


def test_more_directions_than_a_layer_has_are_refused(make_job: Any, run: Any) -> None:
    with pytest.raises(SpecUnusable, match=r"k_proj has only 32 directions") as caught:
        run(make_job("lora", block={"init_lora_weights": "pissa", "r": 64}))
    assert caught.value.param == "tuning.r"


def test_olora_is_refused_for_layers_that_it_would_turn_over(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=64, n_layer=1, n_head=4, vocab_size=100)
    base = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        before = base(input_ids=WORDS).logits
    for begins in ("olora", "pissa"):
        lora = LoraConfig(
            r=8, target_modules=["c_attn"], init_lora_weights=begins, fan_in_fan_out=True, task_type="CAUSAL_LM"
        )
        tuning = LoraTuning(r=8, lora_alpha=16, init_lora_weights=begins)
        file = tmp_path / begins / initial.FILE
        if begins == "olora":
            with pytest.raises(SpecUnusable, match=r"does not know layers such as transformer\.h\.0\.attn\.c_attn"):
                initial.begun(deepcopy(base), lora, tuning, file)
            continue
        for _ in range(2):  # found, and as the file says
            adapter = initial.begun(deepcopy(base), lora, tuning, file).eval()
            with torch.no_grad():
                torch.testing.assert_close(adapter(input_ids=WORDS).logits, before, atol=1e-4, rtol=0)


def test_experts_are_refused_where_they_are_not_left_out(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mixtral", hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=100
    )
    config.num_local_experts, config.intermediate_size = 4, 96
    for targets in (["q_proj", "v_proj"], "all-linear"):
        base = AutoModelForCausalLM.from_config(config)
        tuning = LoraTuning(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=targets)
        lora = LoraConfig(r=4, target_modules=targets, init_lora_weights="pissa", task_type="CAUSAL_LM")
        file = tmp_path / initial.FILE
        if targets == "all-linear":
            file.unlink()
            with pytest.raises(SpecUnusable, match=r"experts of this base .* tuning\.target_modules"):
                initial.begun(base, lora, tuning, file)
        else:
            initial.begun(base, lora, tuning, file)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is computed")
def test_loftq_is_refused_without_a_gpu(make_job: Any, run: Any) -> None:
    with pytest.raises(SpecUnusable, match="computed on a GPU"):
        run(make_job("qlora", block={"init_lora_weights": "loftq"}))


def _stop_after_two(message: Any, stop: Any) -> None:
    """A shutdown that comes while step 3 is computed; there is none in what is left."""
    if isinstance(message, messages.Metrics) and message.step == 2:
        stop.wish = "save"


def _on_base(bases: Path, folder: Path) -> Any:
    """As anybody would load it."""
    base = AutoModelForCausalLM.from_pretrained(bases / "tiny", dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder).eval()


def _planned_bytes(base: Path, work_dir: Path) -> int:
    tensors = {name: tuple(one.shape) for name, one in load_file(base / "model.safetensors").items()}
    shape = shape_of(json.loads((base / "config.json").read_text()), tensors=tensors)
    spec = _spec(work_dir)
    return artifacts.adapter_bytes(spec, shape, setup_of(spec, shape, Device("cpu", "fp32")), tensors, "llama")


def _spec(work_dir: Path) -> JobSpec:
    return JobSpec.model_validate_json((work_dir / "job.json").read_text())


def _tuning(work_dir: Path) -> LoraTuning:
    tuning = _spec(work_dir).tuning
    assert isinstance(tuning, LoraTuning)
    return tuning
