"""How fast a job trains, and in how much memory, against TRL's own trainer as a script uses it on a CPU.

`python -m benchmarks.training BASE ROWS [--tuning lora --tuning qlora --tuning full] [--steps 6] [--rounds 2]
[--layers N] [--script-fp32]`: BASE is the folder of a model, of which `--layers` takes the first N; ROWS a JSON list
(or JSONL) of Alpaca's rows. Both sides take the same rows, 16 a step, in the same order, at the same rate; the script
has TRL's defaults in all else (8 rows at a time, checkpointing, bf16; on a CPU without AVX512-BF16 that is minutes a
step, and `--script-fp32` takes it back). They run by turns. Prints medians of seconds a step without the first, the
highest resident memory, the ratios round by round, and how far the losses are apart.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.jobs.spec import JobSpec

ROOT = Path(__file__).parents[1]
ROWS_A_STEP = 16


@dataclass(frozen=True, slots=True)
class Run:
    """One side, once."""

    seconds: list[float]
    """Of each step."""
    losses: list[float]
    peak_bytes: int

    @property
    def step(self) -> float:
        """Seconds, the first left out."""
        return statistics.median(self.seconds[1:])


def main() -> None:
    """Run both sides by turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--tuning", action="append", choices=["lora", "qlora", "full"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--script-fp32", action="store_true")
    arguments = parser.parse_args()
    table = Table("tuning", "ours s/step", "TRL s/step", "faster", "ours GiB", "TRL GiB", "memory", "loss apart")
    for tuning in arguments.tuning or ["lora", "qlora", "full"]:
        with tempfile.TemporaryDirectory() as folder:
            base = shortened(arguments.base, Path(folder), arguments.layers) if arguments.layers else arguments.base
            work_dir = prepared(Path(folder), base, arguments.rows, tuning, arguments.steps)
            rounds = []
            for _ in range(arguments.rounds):
                rounds.append((ours(work_dir, base), bare(work_dir, base, fp32=arguments.script_fp32)))
                one, other = rounds[-1]
                print(f"{tuning}: {one.step:.1f} and {other.step:.1f} s/step", file=sys.stderr, flush=True)
        table.add_row(tuning, *summed(rounds))
    Console(width=120).print(table)


def prepared(folder: Path, base: Path, rows: Path, tuning: str, steps: int) -> Path:
    """A WORKDIR whose files are prepared, and the same rows as TRL takes them."""
    text = rows.read_text()
    given = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    work_dir = folder / "job"
    work_dir.mkdir()
    chosen = [talk(row) for row in given[: steps * ROWS_A_STEP]]
    (work_dir / "training_file").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    block = {"n_epochs": 1, "max_steps": steps, "batch_size": ROWS_A_STEP, "packing": False, "warmup_ratio": 0.0}
    spec = {
        "model": base.name,
        "training_file": "file-1",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": block}},
        "tuning": {"type": tuning},
        "evaluation": {"holdout": 0.0},
    }
    (work_dir / "job.json").write_text(JobSpec.model_validate_json(json.dumps(spec)).model_dump_json())
    return work_dir


def shortened(base: Path, folder: Path, layers: int) -> Path:
    """A smaller model: `base` with its first `layers` alone, in a folder beside the job's."""
    model = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=layers)
    smaller = folder / f"{base.name}-{layers}"
    model.save_pretrained(smaller)
    AutoTokenizer.from_pretrained(base).save_pretrained(smaller)
    return smaller


def talk(row: dict[str, Any]) -> dict[str, Any]:
    """Alpaca's row as a prompt of messages and its completion."""
    asked = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    answer = {"role": "assistant", "content": row["output"]}
    return {"prompt": [{"role": "user", "content": asked}], "completion": [answer]}


def ours(work_dir: Path, base: Path) -> Run:
    """The trainer as a worker starts it, without a service."""
    for name in ("checkpoints", "result", "offered"):
        shutil.rmtree(work_dir / name, ignore_errors=True)
    environment = {**os.environ, "FINETUNED_MODELS_DIR": str(base.parent)}
    lines, peak = run([sys.executable, "-m", "worker.training", str(work_dir)], environment)
    steps = [line for line in lines if line.get("type") == "metrics"]
    began = [0.0, *(step["seconds"] for step in steps)]
    seconds = [after - before for before, after in itertools.pairwise(began)]
    return Run(seconds, [step["loss"] for step in steps], peak)


def bare(work_dir: Path, base: Path, *, fp32: bool) -> Run:
    """The script beside this one, with TRL's defaults, but for bf16 where it is told to."""
    with tempfile.TemporaryDirectory() as out:
        script = [sys.executable, "-m", "benchmarks.bare_trl", "--defaults", *(["--fp32"] if fp32 else [])]
        lines, peak = run([*script, str(base), str(work_dir / "training_file"), str(work_dir / "job.json"), out], {})
    times = [line["at"] for line in lines if line.get("phase") == "loaded" or "loss" in line]
    losses = [line["loss"] for line in lines if "loss" in line]
    return Run([after - before for before, after in itertools.pairwise(times)], losses, peak)


def run(command: list[str], environment: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines that a process printed, and its highest resident memory, looked at every 50 ms."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        child = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=said, stderr=complained, cwd=ROOT, text=True
        )
        watched, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        if child.wait() != 0:
            complained.seek(0)
            raise SystemExit(complained.read()[-3000:])
        said.seek(0)
        return [json.loads(line) for line in said if line.startswith("{")], peak


def summed(rounds: list[tuple[Run, Run]]) -> list[str]:
    """The columns of a row."""
    apart = max(
        abs(mine - theirs) / theirs
        for one, other in rounds
        for mine, theirs in zip(one.losses, other.losses, strict=True)
    )
    gib = 1024**3
    return [
        f"{statistics.median(one.step for one, _ in rounds):.2f}",
        f"{statistics.median(other.step for _, other in rounds):.2f}",
        f"{statistics.median(other.step / one.step for one, other in rounds):.2f} ×",
        f"{statistics.median(one.peak_bytes for one, _ in rounds) / gib:.2f}",
        f"{statistics.median(other.peak_bytes for _, other in rounds) / gib:.2f}",
        f"{statistics.median(one.peak_bytes / other.peak_bytes for one, other in rounds):.2f} ×",
        f"{100 * apart:.2f} %",
    ]


if __name__ == "__main__":
    main()
