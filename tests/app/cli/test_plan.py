"""`finetuned plan` at a running server, as a person and as a script use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.running import Service


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


def test_a_wrong_field_is_named_with_its_line(service: Service, tmp_path: Path) -> None:
    spec = written(tmp_path, "model: tiny\nassume:\n  rows: 0\n  tokens: 5\n  longest: 5\n")
    _, err = plan(service, spec, code=1)
    assert "job.yaml, line 3: assume.rows: " in err
