"""What the service costs: a job from POST to succeeded, against the trainer by hand and a bare TRL script.

`python -m benchmarks.overhead [--tuning lora] [--rounds 3]`: the same rows, base, numbers and seed in all four, one
after the other in each round, on a base of some 20 M parameters made on the spot. `cold` is the bare script as a user
starts it; the service stands with a trainer ready (`standby`) and without. Prints medians, ratios taken round by round,
and for the training phase that of the fastest rounds: what others do to a machine only ever makes a round slower.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests import running, tiny
from tests.running import Service

ROOT = Path(__file__).parents[1]
STATIONS = """
SELECT extract(epoch FROM p.started_at - j.created_at), extract(epoch FROM p.ended_at - p.started_at),
       extract(epoch FROM t.started_at - p.ended_at), extract(epoch FROM t.ended_at - t.started_at),
       extract(epoch FROM j.finished_at - j.created_at)
FROM jobs j
JOIN work pw ON pw.subject = j.id AND pw.kind = 'prepare' JOIN attempts p ON p.work_id = pw.id
JOIN work tw ON tw.subject = j.id AND tw.kind = 'train' JOIN attempts t ON t.work_id = tw.id
WHERE j.id = %s
"""

AS_IN_PRODUCTION = {
    "FINETUNED_HEARTBEAT_INTERVAL": "10",
    "FINETUNED_LEASE_TIMEOUT": "60",
    "FINETUNED_SWEEP_INTERVAL": "15",
    "FINETUNED_TORCH_THREADS": str(len(os.sched_getaffinity(0))),
}
"""Where the tests have it otherwise."""

console = Console(width=120)


@dataclass
class Run:
    """One way of doing the work, once; seconds from its start."""

    first_step: float
    train: float
    whole: float
    losses: list[float]
    stations: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """All ways, round by round, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", default="lora", choices=["lora", "qlora", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=320)
    arguments = parser.parse_args()
    runs: dict[str, list[Run]] = {"cold": [], "by hand": [], "standby": [], "no standby": []}
    with tempfile.TemporaryDirectory(prefix="ft-") as scratch:
        homes = [Path(scratch, name) for name in ("a", "b")]
        for home in homes:
            tiny.make_base(home / "models" / "small", hidden_size=384, layers=12)
        rows = [
            {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
            for row in tiny.chat_rows(arguments.rows)
        ]
        slow = {**AS_IN_PRODUCTION, "FINETUNED_STANDBY": "0"}
        with running.up(homes[0], **AS_IN_PRODUCTION) as ready, running.up(homes[1], **slow) as unready:
            for number in range(arguments.rounds):
                folder = Path(scratch, f"round-{number}")
                folder.mkdir()
                job_id, run = by_service(ready, arguments.tuning, rows)
                runs["standby"].append(run)
                runs["no standby"].append(by_service(unready, arguments.tuning, rows)[1])
                base = homes[0] / "models" / "small"
                work_dir = unpack(ready, job_id, folder, rows)
                runs["by hand"].append(by_hand(work_dir, base))
                runs["cold"].append(bare(work_dir, base, precision_of(work_dir)))
                latest = (f"{name} {run[-1].first_step:.2f} + {run[-1].train:.2f}" for name, run in runs.items())
                console.print(f"round {number + 1}, to the first step + training phase:", ", ".join(latest))
    show(arguments.tuning, runs)


def by_service(service: Service, tuning: str, rows: list[dict[str, Any]]) -> tuple[str, Run]:
    """A job over HTTP, as its client sees it. Waits before and after until trainers stand by where they shall."""
    client = service.client()
    file_id = service.upload(rows)
    running.wait_for(lambda: idle(service), 60)
    began = time.perf_counter()
    job = client.fine_tuning.jobs.create(
        model="small",
        training_file=file_id,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}},
        extra_body={"tuning": {"type": tuning}, "evaluation": {"holdout": 0}},  # the bare script evaluates nothing
    )
    posted = time.perf_counter()

    def stepped() -> bool:
        time.sleep(0.1)
        return any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id, limit=1).data)

    running.wait_for(stepped, 120)
    first_step = time.perf_counter() - began
    ended = service.finished(job.id, 600, every=2.0)  # as a script polls; every question takes a core from training
    if ended.status != "succeeded":
        raise SystemExit(f"the job ended as {ended.status}: {ended.error}")
    metrics = entry_of(service, ended.fine_tuned_model)["metrics"]
    losses = [event.data["train_loss"] for event in service.events(job.id) if event.type == "metrics"]
    stations = stations_of(service, job.id, metrics["phases"]) | {"POST": posted - began}
    running.wait_for(lambda: idle(service), 60)  # or the next run would have its imports beside it
    whole = stations["POST"] + stations["POST to succeeded"]
    return job.id, Run(first_step, metrics["phases"]["train"], whole, losses, stations)


def idle(service: Service) -> bool:
    """Whether the trainers that stand by have their imports done: they have grown, and nobody uses the processor."""
    processes = service.processes()

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    try:
        if any("--wait" in process.cmdline() and process.memory_info().rss < 60 << 20 for process in processes):
            return False
        before = used()
        time.sleep(0.5)
        return used() - before < 0.05
    except psutil.Error:  # one has just ended
        return False


def stations_of(service: Service, job_id: str, phases: dict[str, float]) -> dict[str, float]:
    """Where the time went, by the database's clock and the trainer's own."""
    with service.database() as database:
        found = database.execute(STATIONS, [job_id]).fetchone()
    assert found is not None
    queue, prepare, handover, attempt, whole = map(float, found)
    inside = phases["load"] + phases["train"] + phases["save"]
    return {
        "queue": queue + handover,
        "prepare": prepare,
        "load": phases["load"],
        "train": phases["train"],
        "save": phases["save"],
        "import, publish": attempt - inside,
        "POST to succeeded": whole,
    }


def entry_of(service: Service, model: str) -> dict[str, Any]:
    """The registry's row."""
    entry: dict[str, Any] = service.get(f"/v1/registry/models/{model}")
    return entry


def unpack(service: Service, job_id: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A WORKDIR for the trainer by hand, and the bare script's input: what the job's spec became."""
    job = service.client().fine_tuning.jobs.retrieve(job_id)
    entry = entry_of(service, str(job.fine_tuned_model))
    spec = service.get(f"/v1/registry/models/{entry['id']}/files/job.json")
    work_dir = folder / "work"
    work_dir.mkdir()
    (work_dir / "job.json").write_text(json.dumps(spec))
    (work_dir / "precision").write_text(entry["metrics"]["precision"])
    tiny.write_jsonl(work_dir / "training_file", rows)
    return work_dir


def precision_of(work_dir: Path) -> str:
    """What the service's trainer found to be fast here."""
    return {"bf16": "bfloat16", "fp32": "float32"}[(work_dir / "precision").read_text()]


def by_hand(work_dir: Path, base: Path) -> Run:
    """`python -m worker.training WORKDIR`, preparing included."""
    environment = {**os.environ, "FINETUNED_MODELS_DIR": str(base.parent)}
    began = time.perf_counter()
    first_step, losses = 0.0, []
    for line in lines_of([sys.executable, "-m", "worker.training", str(work_dir)], environment):
        if line["type"] == "metrics":
            first_step = first_step or time.perf_counter() - began
            losses.append(line["loss"])
    whole = time.perf_counter() - began
    metrics = json.loads((work_dir / "result" / "metrics.json").read_text())
    return Run(first_step, metrics["phases"]["train"], whole, losses)


def bare(work_dir: Path, base: Path, dtype: str) -> Run:
    """A script, as a user would start it."""
    inputs = [str(base), str(work_dir / "training_file"), str(work_dir / "job.json"), str(work_dir / "bare")]
    began, began_at = time.perf_counter(), time.time()
    at: dict[str, float] = {}
    losses = []
    for line in lines_of([sys.executable, "-m", "benchmarks.bare_trl", *inputs, "--dtype", dtype], dict(os.environ)):
        if "loss" in line:
            at.setdefault("step", line["at"])
            losses.append(line["loss"])
        else:
            at[line["phase"]] = line["at"]
    stations = {
        "import": at["imported"] - began_at,
        "load, prepare": at["loaded"] - at["imported"],
        "train": at["trained"] - at["loaded"],
        "save": at["saved"] - at["trained"],
    }
    whole = time.perf_counter() - began
    return Run(at["step"] - began_at, at["trained"] - at["loaded"], whole, losses, stations)


def lines_of(command: list[str], environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What a process prints in JSON, as it prints it. Raises `SystemExit` when it fails."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"{command} ended with code {process.returncode}")


def show(tuning: str, runs: dict[str, list[Run]]) -> None:
    """The table, the stations, and the ratios that the service promises."""
    table = Table(
        title=f"{tuning}, {len(runs['cold'][0].losses)} steps, medians of {len(runs['cold'])} rounds, seconds"
    )
    for column in ("", "to the first step", "training phase", "whole"):
        table.add_column(column, justify="left" if not column else "right")
    names = {
        "cold": "bare TRL script, cold",
        "by hand": "trainer by hand",
        "standby": "service, standby",
        "no standby": "service, no standby",
    }
    for name, title in names.items():
        figures = (median([getattr(run, what) for run in runs[name]]) for what in ("first_step", "train", "whole"))
        table.add_row(title, *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    for name, title in names.items():
        if stations := runs[name][0].stations:
            parts = {part: median([run.stations[part] for run in runs[name]]) for part in stations}
            console.print(f"{title}: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()))
    cold, standby, unready = runs["cold"], runs["standby"], runs["no standby"]
    differs = max(
        abs(a - b)
        for one, other in zip(cold, standby, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    )
    training = ratios([run.train for run in standby], [run.train for run in cold])
    sooner = ratios([run.first_step for run in cold], [run.first_step for run in standby])
    later = ratios([run.first_step for run in unready], [run.first_step for run in cold])
    fastest = min(run.train for run in standby) / min(run.train for run in cold)
    console.print(f"training phase, service / bare script: {training} (at most 1.03), fastest of each {fastest:.3f}")
    console.print(f"to the first step, cold script / service with a standby: {sooner} (at least 4)")
    console.print(f"to the first step, service without / cold script: {later} (at most 1)")
    console.print(f"largest difference of a step's loss: {differs:.2e}")


def median(figures: list[float]) -> float:
    """Of one figure's rounds."""
    return statistics.median(figures)


def ratios(one: list[float], other: list[float]) -> str:
    """Median of the ratios, and their range."""
    found = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"


if __name__ == "__main__":
    main()
