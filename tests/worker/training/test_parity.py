"""The service changes nothing about training: a bare TRL script with the same spec, data and seed says the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps

PROMPTS = tiny.prompt_rows(16)
CONVERSATIONS = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in tiny.chat_rows(16)]


@pytest.mark.parametrize(
    ("tuning", "block", "rows", "chosen"),
    [
        ("lora", {}, PROMPTS, {}),
        ("qlora", {}, PROMPTS, {}),
        ("full", {}, PROMPTS, {}),
        ("lora", {}, CONVERSATIONS, {}),
        ("lora", {"use_dora": True}, PROMPTS, {}),
        ("qlora", {"use_dora": True}, PROMPTS, {}),
        ("lora", {"use_rslora": True, "r": 64}, PROMPTS, {"learning_rate": 1e-3}),
        ("lora", {"loraplus_lr_ratio": 4.0}, PROMPTS, {"weight_decay": 0.1}),
        ("lora", {"lora_dropout": 0.1}, PROMPTS, {}),
        ("lora", {}, PROMPTS, {"neftune_noise_alpha": 0.1}),
        ("full", {}, PROMPTS, {"neftune_noise_alpha": 5.0}),
        ("lora", {"init_lora_weights": "pissa", "r": 8}, PROMPTS, {}),
        ("lora", {"init_lora_weights": "pissa_niter_16", "r": 8, "use_rslora": True}, PROMPTS, {"learning_rate": 1e-3}),
        ("lora", {"init_lora_weights": "olora", "r": 8}, PROMPTS, {"learning_rate": 1e-3}),
        ("lora", {"modules_to_save": ["embed_tokens", "o_proj"]}, PROMPTS, {}),
        ("qlora", {"modules_to_save": ["embed_tokens"]}, PROMPTS, {}),
    ],
    ids=[
        *("lora", "qlora", "full", "conversations", "DoRA", "DoRA in 4 bits", "rsLoRA", "LoRA+", "dropout"),
        *("NEFTune", "NEFTune of all weights", "PiSSA", "PiSSA, about", "OLoRA"),
        *("modules trained whole", "modules trained whole over 4 bits"),
    ],
)
def test_every_step_has_the_loss_of_a_bare_trl_script(
    make_job: Any,
    run: Any,
    bases: Path,
    tmp_path: Path,
    tuning: str,
    block: dict[str, Any],
    rows: list[dict[str, Any]],
    chosen: dict[str, Any],
) -> None:
    # Batches of two rows of different lengths, accumulated: padding and the weights of micro-batches count.
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    work_dir = make_job(tuning, rows=rows, block=block, **batch, **chosen)

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


@pytest.mark.parametrize(
    ("block", "chosen"),
    [
        ({"use_dora": True}, {}),
        ({"use_rslora": True}, {}),
        ({"loraplus_lr_ratio": 4.0}, {}),
        ({"lora_dropout": 0.1}, {}),
        ({}, {"neftune_noise_alpha": 5.0}),
        ({"init_lora_weights": "pissa"}, {}),
        ({"init_lora_weights": "olora"}, {}),
        ({"modules_to_save": ["embed_tokens"]}, {}),
    ],
    ids=str,
)
def test_each_option_does_something(make_job: Any, run: Any, block: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Parity alone would not see an option that both sides leave out."""
    plain, other = (
        [message.loss for message in steps(run(make_job("lora", rows=PROMPTS, max_steps=4, **options)))]
        for options in ({}, {"block": block, **chosen})
    )
    assert other != pytest.approx(plain, abs=1e-5)
