"""`finetuned plan` at a running server, as a person and as a script use it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import tiny
from tests.running import Service, cmdline, is_alive, up, wait_for


def plan(service: Service, spec: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command prints, and says beside it."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "plan", str(spec), *arguments],
        env={"PATH": os.environ["PATH"], "FINETUNED_HOME": str(service.home), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def written(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_a_spec_with_its_file_is_planned_and_the_file_uploaded(service: Service, tmp_path: Path) -> None:
    tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.chat_rows(12))
    spec = written(tmp_path, "model: tiny\ntraining_file: rows.jsonl\ntuning: {type: lora, r: 8}\n")
    out, _ = plan(service, spec)
    lines = out.splitlines()
    assert lines[0].startswith("It fits cpu: ")
    assert any(line.startswith("cpu (here)") for line in lines)
    assert any(line.startswith("16,384 parameters trained") for line in lines)
    assert any(line.startswith("learning_rate ") and "LoRA Without Regret" in line for line in lines)
    assert not any(line.startswith("r 8") for line in lines)  # it is given


def test_a_script_reads_json_and_plans_without_a_file(service: Service, tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "model: tiny\ntraining_file: null\nassume: {rows: 50, tokens: 5000, longest: 90}\nmethod: {type: dpo}\n",
    )
    found = json.loads(plan(service, spec, "--json")[0])
    assert found["data"] == {"rows": 50, "tokens": 5000, "longest_row": 90, "basis": "assumed"}
    assert found["resolved"]["method"]["dpo"]["hyperparameters"]["beta"] == 0.1


@pytest.mark.long
def test_a_job_s_plan_gets_a_dry_run_and_whoever_plans_the_same_has_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        home = Path(folder)
        tiny.make_base(home / "models" / "tiny")
        with up(home, FINETUNED_DRY_RUNS="true") as service:
            ready = wait_for(lambda: standing_by(service), 60)
            rows = tiny.chat_rows(12)
            job_id = service.submit(service.upload(rows), n_epochs=1)

            def counted() -> Any:
                its = service.get(f"/v1/fine_tuning/jobs/{job_id}")["plan"]
                return its if its and its["memory"]["basis"] == "dry_run" else None

            own = wait_for(counted, 200, every=0.5)
            assert not is_alive(ready)  # it made this dry run: another would be seconds of imports later
            formula = own["formula"]
            assert own["memory"]["train_peak_gib"] == pytest.approx(formula["train_peak_gib"], rel=0.25)
            service.client().fine_tuning.jobs.cancel(job_id)

            tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
            out, _ = plan(service, written(tmp_path, "model: tiny\ntraining_file: rows.jsonl\n"))
            assert out.splitlines()[0].endswith("(counted by a dry run).")


def standing_by(service: Service) -> psutil.Process | None:
    """Who waits for a dry run to make."""
    return next((one for one in service.trainers() if "worker.training.dry_run" in cmdline(one)), None)


def test_a_wrong_field_is_named_with_its_line(service: Service, tmp_path: Path) -> None:
    spec = written(tmp_path, "model: tiny\nassume:\n  rows: 0\n  tokens: 5\n  longest: 5\n")
    _, err = plan(service, spec, code=1)
    assert "job.yaml, line 3: assume.rows: " in err
