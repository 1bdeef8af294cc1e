"""The service changes nothing about training: a bare TRL script with the same spec, data and seed says the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps

CONVERSATIONS = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in tiny.chat_rows(16)]


@pytest.mark.parametrize(
    ("tuning", "rows"),
    [
        ("lora", tiny.prompt_rows(16)),
        ("qlora", tiny.prompt_rows(16)),
        ("full", tiny.prompt_rows(16)),
        ("lora", CONVERSATIONS),
    ],
    ids=["lora", "qlora", "full", "conversations"],
)
def test_every_step_has_the_loss_of_a_bare_trl_script(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, tuning: str, rows: list[dict[str, Any]]
) -> None:
    # Batches of two rows of different lengths, accumulated: padding and the weights of micro-batches count.
    work_dir = make_job(tuning, rows=rows, per_device_train_batch_size=2, gradient_accumulation_steps=2)

    ours = [message.loss for message in steps(run(work_dir))]
    theirs = _bare(bases / "tiny", work_dir, tmp_path / "out")

    assert len(theirs) == 8
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < ours[0] - 0.1


def _bare(base: Path, work_dir: Path, out: Path) -> list[float]:
    """The losses of the benchmark's script, which takes the rows as they were uploaded and the numbers of job.json."""
    spec = json.loads((work_dir / "job.json").read_text())
    trainer = bare_trl.build(base, work_dir / "training_file", spec, out, torch.float32)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
