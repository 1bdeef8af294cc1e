"""Every method, by every tuning: each step has the loss of a bare TRL script, and results are what methods make."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.jobs.prepared import Parent, Prepared
from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.training.failures import MethodNotSupported

PAIRS = tiny.preference_rows(16)
ANSWERS = tiny.unpaired_rows(16)
TEXTS = tiny.text_rows(16)
ROWS = {"dpo": PAIRS, "kto": ANSWERS, "orpo": PAIRS, "simpo": PAIRS, "reward": PAIRS, "continued_pretraining": TEXTS}
BATCH = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "batch_size": "auto"}


@pytest.mark.parametrize(
    ("method", "tuning"),
    [
        *((method, "lora") for method in ROWS),
        *itertools.product(["dpo", "kto", "reward", "continued_pretraining"], ["full"]),
        *(pytest.param(method, "full", marks=pytest.mark.long) for method in ("orpo", "simpo")),
        ("dpo", "qlora"),
        *(pytest.param(method, "qlora", marks=pytest.mark.long) for method in ROWS if method != "dpo"),
    ],
)
def test_every_step_has_the_loss_of_the_librarys_own_trainer(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, method: str, tuning: str
) -> None:
    # KTO compares answers with those of other prompts only once the wanted ones have become likelier.
    rate = 5e-3 if method == "kto" else 1e-3
    work_dir = make_job(tuning, method=method, rows=ROWS[method], learning_rate=rate, n_epochs=2, **BATCH)

    ours = [message.loss for message in steps(run(work_dir))]
    theirs = bare(bases / "tiny", work_dir, tmp_path / "out")

    assert len(theirs) == 8
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    "chosen",
    [
        "robust",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("hinge", "ipo", "apo_zero", "sigmoid_norm")),
    ],
)
def test_dpo_has_the_losses_of_the_library_by_each_loss_type(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, chosen: str
) -> None:
    options = {"learning_rate": 1e-3, "n_epochs": 1, **BATCH}
    work_dir = make_job("lora", method="dpo", rows=PAIRS, loss_type=chosen, **options)

    ours = [message.loss for message in steps(run(work_dir))]

    assert ours == pytest.approx(bare(bases / "tiny", work_dir, tmp_path / "out"), abs=1e-5)
    usual = [message.loss for message in steps(run(make_job("lora", method="dpo", rows=PAIRS, **options)))]
    assert ours != pytest.approx(usual, abs=1e-4)


def test_what_preferences_measure_is_said_of_steps_and_of_evaluations(make_job: Any, run: Any) -> None:
    for method, has_accuracy in (("dpo", True), ("orpo", True), ("simpo", True), ("reward", True), ("kto", False)):
        work_dir = make_job("lora", method=method, rows=ROWS[method], validation=ROWS[method][:4], n_epochs=4, **BATCH)
        said = run(work_dir)
        for message in (steps(said)[-1], next(one for one in said[::-1] if isinstance(one, messages.Eval))):
            assert (message.reward_accuracy is not None) == has_accuracy
            assert message.reward_margin is not None
            if method in ("dpo", "reward"):
                assert message.reward_accuracy == 1.0
                assert message.reward_margin > 0
        assert steps(said)[-1].tokens == 4 * prepared_tokens(work_dir)


def test_an_adapter_that_goes_on_is_compared_with_what_it_was(make_job: Any, run: Any) -> None:
    """So its first loss says that nothing has changed yet: ln 2. Against the base, from which it has gone far, not."""
    first = make_job("lora", method="dpo", rows=PAIRS, n_epochs=4, **BATCH)
    assert steps(run(first))[-1].loss < 0.5
    going_on = make_job("lora", method="dpo", rows=PAIRS, n_epochs=1, **BATCH)
    shutil.copytree(first / "result", going_on / "parent")
    parent = Parent(id="ft:tiny:default::1", kind="adapter", base=prepared(first).base)
    (going_on / "parent.json").write_text(parent.model_dump_json())

    losses = [message.loss for message in steps(run(going_on))]

    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] != losses[0]
    assert not (going_on / "result" / "ref").exists()


@pytest.mark.parametrize("tuning", ["lora", "qlora", "full"])
def test_a_reward_model_gives_the_chosen_answer_the_higher_number(
    make_job: Any, run: Any, bases: Path, tuning: str
) -> None:
    work_dir = make_job(tuning, method="reward", rows=PAIRS, n_epochs=4, **BATCH)
    run(work_dir)

    kind = AutoModelForSequenceClassification if tuning == "full" else AutoPeftModelForSequenceClassification
    if tuning != "full":
        config = json.loads((work_dir / "result" / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(bases / "tiny")
        (work_dir / "result" / "adapter_config.json").write_text(json.dumps(config))
    model = kind.from_pretrained(work_dir / "result", num_labels=1, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "result")
    with torch.no_grad():
        for row in PAIRS[:4]:
            chosen, rejected = (
                model(**tokenizer(row["prompt"] + row[name] + tokenizer.eos_token, return_tensors="pt")).logits.item()
                for name in ("chosen", "rejected")
            )
            assert chosen > rejected


def test_a_trainer_that_the_library_dropped_is_said(make_job: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work_dir = make_job("lora", method="orpo", rows=PAIRS, **BATCH)
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    with pytest.raises(MethodNotSupported, match="no trainer for 'orpo' any more"):
        run(work_dir)


def test_a_long_text_is_trained_in_pieces_and_none_of_it_is_lost(make_job: Any, run: Any) -> None:
    texts = [{"text": "red green blue " * 40}, {"text": "white"}]
    work_dir = make_job("full", method="continued_pretraining", rows=texts, max_length=32, packing=True, n_epochs=1)
    whole = prepared(make_job("full", method="continued_pretraining", rows=texts, packing=False)).train
    cut = prepared(work_dir).train

    assert cut.longest_row <= 32 < whole.longest_row
    assert whole.tokens - 1 <= cut.tokens <= whole.tokens  # a last piece of one token would learn nothing
    assert cut.packs is not None
    assert run(work_dir)[-1] == messages.Done()


def prepared(work_dir: Path) -> Prepared:
    return Prepared.model_validate_json((work_dir / "prepared.json").read_text())


def prepared_tokens(work_dir: Path) -> int:
    return prepared(work_dir).train.tokens


def bare(base: Path, work_dir: Path, out: Path) -> list[float]:
    """The losses of the benchmark's script, which takes the rows as they were uploaded and the numbers of job.json."""
    spec = json.loads((work_dir / "job.json").read_text())
    trainer = bare_trl.build(base, work_dir / "training_file", spec, out, torch.float32)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
