"""How often a plan's interval of time holds the true one: jobs of many kinds, each planned by those before it.

`python -m benchmarks.duration [--jobs 13]`: tiny and small Llamas made on the spot, trained one after the other on this
machine's CPU as a worker would; the first three are only learnt from.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.planning.duration import Duration, Measured, Work, duration
from app.planning.plan import work_of_job
from app.planning.shapes import shape_of
from tests import tiny

LEARNT_FROM = 3
SIZES = {"tiny": (64, 2), "small": (256, 6), "medium": (384, 8)}
METHODS = ("supervised", "supervised", "dpo", "kto", "orpo")


def main() -> None:
    """Draw jobs, train them, and print each interval beside the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=13)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawn = random.Random(arguments.seed)  # noqa: S311  no secret
    earlier, held = list[Measured](), list[bool]()
    print(f"{'job':34}{'low':>8}{'seconds':>9}{'high':>8}{'true':>8}  holds")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, (hidden, layers) in SIZES.items():
            tiny.make_base(root / "models" / name, hidden_size=hidden, layers=layers)
        for number in range(arguments.jobs):
            spec, rows = draw(drawn)
            work, truth = train(root, number, spec, rows)
            found = duration(work, "cpu", None, earlier)
            holds = found.low <= truth <= found.high
            tell(spec, found, truth, holds=holds, counts=number >= LEARNT_FROM)
            if number >= LEARNT_FROM:
                held.append(holds)
            earlier.append(Measured(work, truth))
    print(f"{sum(held)} of {len(held)} intervals hold the true time (wanted: 8 of 10)")


def draw(drawn: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A spec and its rows."""
    method, tuning = drawn.choice(METHODS), drawn.choice(("full", "lora", "qlora"))
    count = drawn.choice((48, 96, 192))
    rows = {"kto": tiny.unpaired_rows, "supervised": tiny.prompt_rows}.get(method, tiny.preference_rows)(count)
    block = {"n_epochs": drawn.choice((1, 2, 3)), "batch_size": 8}
    spec = {
        "model": drawn.choice(list(SIZES)),
        "training_file": "file-train",
        "seed": 0,
        "method": {"type": method, method: {"hyperparameters": block}},
        "tuning": {"type": tuning},
    }
    return spec, rows


def train(root: Path, number: int, spec: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Work, float]:
    """What a job had to compute, and the seconds from loading to its result."""
    work_dir = root / f"job-{number}"
    work_dir.mkdir()
    tiny.write_jsonl(work_dir / "training_file", rows)
    (work_dir / "job.json").write_text(JobSpec.model_validate(spec).model_dump_json())
    environment = {**os.environ, "FINETUNED_MODELS_DIR": str(root / "models")}
    command = [sys.executable, "-m", "worker.training", str(work_dir)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    numbers = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    prepared = Prepared.model_validate_json((work_dir / "prepared.json").read_text())
    metrics = json.loads((work_dir / "result" / "metrics.json").read_text())
    base = root / "models" / str(spec["model"])
    shape = shape_of(json.loads((base / "config.json").read_text()))
    work = work_of_job(
        numbers,
        params=shape.params,
        trained=metrics["trained_parameters"],
        tokens=metrics["tokens"],
        steps=metrics["steps"],
        packing_saves=prepared.train.packing_saves,
        moved_bytes=2.0 * shape.params,
    )
    return work, sum(metrics["phases"].values())


def tell(spec: dict[str, Any], found: Duration, truth: float, *, holds: bool, counts: bool) -> None:
    """One line."""
    name = f"{spec['model']} {spec['method']['type']} {spec['tuning']['type']}"
    verdict = ("yes" if holds else "NO") if counts else "(learnt from)"
    print(f"{name:34}{found.low:8.1f}{found.seconds:9.1f}{found.high:8.1f}{truth:8.1f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
