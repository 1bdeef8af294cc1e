"""Every method, by every tuning: each step has the loss of a bare TRL script, and the result is what the method makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps
from worker.training.failures import MethodNotSupported

PAIRS = tiny.preference_rows(16)
ANSWERS = tiny.unpaired_rows(16)
TEXTS = tiny.text_rows(16)
ROWS = {"dpo": PAIRS, "kto": ANSWERS, "orpo": PAIRS, "simpo": PAIRS, "reward": PAIRS, "continued_pretraining": TEXTS}
BATCH = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "batch_size": "auto"}


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
@pytest.mark.parametrize("method", ROWS)
def test_every_step_has_the_loss_of_the_librarys_own_trainer(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, method: str, tuning: str
) -> None:
    work_dir = make_job(tuning, method=method, rows=ROWS[method], learning_rate=1e-3, n_epochs=2, **BATCH)

    ours = [message.loss for message in steps(run(work_dir))]
    theirs = bare(bases / "tiny", work_dir, tmp_path / "out")

    assert len(theirs) == 8
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < ours[0]


def bare(base: Path, work_dir: Path, out: Path) -> list[float]:
    """The losses of the benchmark's script, which takes the rows as they were uploaded and the numbers of job.json."""
    spec = json.loads((work_dir / "job.json").read_text())
    trainer = bare_trl.build(base, work_dir / "training_file", spec, out, torch.float32)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
