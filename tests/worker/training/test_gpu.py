"""What only a GPU can show: `make test-gpu`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.jobs.spec import JobSpec
from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.devices import device_of
from worker.training import device, failures, model, trainers

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision that the probe finds, not the tests' fp32."""
    monkeypatch.delenv("FINETUNED_PRECISION")


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_each_tuning_trains_by_its_recipe(make_job: Any, run: Any, tuning: str) -> None:
    work_dir = make_job(tuning, rows=tiny.chat_rows(32), validation=tiny.chat_rows(4), n_epochs=4)
    given = json.loads((work_dir / "job.json").read_text())["method"]["supervised"]["hyperparameters"]
    assert given["gradient_checkpointing"] is True
    assert given["optim"] == ("adamw_torch_fused" if tuning == "full" else "adamw_bnb_8bit")

    torch.cuda.reset_peak_memory_stats()
    said = run(work_dir)

    assert said[-1] == messages.Done()
    assert steps(said)[-1].loss < steps(said)[0].loss - 0.3
    assert 0 < steps(said)[-1].memory_bytes == torch.cuda.max_memory_allocated()
    report = json.loads((work_dir / "result" / "metrics.json").read_text())
    assert report["device"] == torch.cuda.get_device_name()
    assert report["precision"] == device.find().precision


def test_loftq_begins_nearer_to_the_base_than_its_4_bits(make_job: Any, run: Any, bases: Path) -> None:
    """And its result is an adapter as any other, on the base in 4 bits."""
    begun = {}
    for begins in (True, "loftq"):
        work_dir = make_job("qlora", block={"init_lora_weights": begins, "r": 16}, n_epochs=4)
        spec, machine = JobSpec.model_validate_json((work_dir / "job.json").read_text()), device.find()
        base, tokenizer = model.load(bases / "tiny", spec, machine)
        begun[begins] = trainers.build(work_dir, spec, machine, base, tokenizer).model.eval()
    whole = AutoModelForCausalLM.from_pretrained(bases / "tiny", dtype=machine.compute_dtype).to("cuda").eval()
    words = torch.arange(3, 35, device="cuda")[None]
    with torch.no_grad():
        expected = whole(input_ids=words).logits.float()
        off = {begins: (one(input_ids=words).logits.float() - expected).norm() for begins, one in begun.items()}
    assert off["loftq"] < off[True]

    said = run(work_dir)
    assert steps(said)[-1].loss < steps(said)[0].loss - 0.3
    assert json.loads((work_dir / "result" / "adapter_config.json").read_text())["init_lora_weights"] is True


def test_stop_and_resume_has_the_losses_of_an_uninterrupted_run(make_job: Any, run: Any) -> None:
    straight, stopped = make_job("lora", n_epochs=2), make_job("lora", n_epochs=2)
    whole = {message.step: message.loss for message in steps(run(straight))}

    def at_step_2(message: Any, stop: Any) -> None:
        if isinstance(message, messages.Metrics) and message.step == 2:
            stop.wish = "save"

    run(stopped, at_step_2)
    rest = {message.step: message.loss for message in steps(run(stopped))}

    assert sorted(rest) == list(range(4, 9))
    assert rest == {step: pytest.approx(whole[step], abs=1e-3) for step in rest}  # bf16, and atomic sums


def test_a_job_that_does_not_fit_is_told_so(make_job: Any, run: Any) -> None:
    """The memory is taken by this test, so that a tiny job runs out of it."""
    work_dir = make_job("lora")
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 64 * 1024**2, dtype=torch.uint8, device="cuda")

    with pytest.raises((failures.DoesNotFit, torch.OutOfMemoryError)) as caught:  # by the probe, or while loading
        run(work_dir)

    del taken
    failed = failures.classify(caught.value, "supervised")
    assert (failed.code, failed.retryable) == ("out_of_memory", False)
    assert failed.param is not None


def test_a_step_of_packs_has_the_loss_of_its_rows(make_job: Any, run: Any) -> None:
    """With the attention that is found: FlashAttention's of sequences of many lengths, or a mask in blocks."""
    shared = {"rows": tiny.chat_rows(12), "n_epochs": 1, "max_length": 100}
    packed = make_job("lora", **shared, packing=True, batch_size=4, per_device_train_batch_size=1)
    unpacked = make_job("lora", **shared, batch_size=12, per_device_train_batch_size=4)

    (ours,), (theirs,) = steps(run(packed)), steps(run(unpacked))

    assert ours.loss == pytest.approx(theirs.loss, abs=5e-3)  # bf16
    assert ours.tokens == theirs.tokens


def test_flash_attention_is_used_where_it_can_be() -> None:
    pytest.importorskip("flash_attn")
    able = torch.cuda.get_device_capability() >= (8, 0)

    assert device.find().attention == ("flash_attention_2" if able else "sdpa")


def test_the_memory_of_a_slot_is_that_of_its_gpu() -> None:
    slot = device_of(0)
    assert slot.uuid is not None
    assert slot.memory_bytes == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)
