"""`finetuned recommend` at a running server, as a person and as a script use it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import tiny
from tests.running import Service


def recommend(service: Service, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command prints, and says beside it."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "recommend", *arguments],
        env={"PATH": os.environ["PATH"], "FINETUNED_HOME": str(service.home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def test_a_recommendation_is_read_with_its_reasons_and_sources(service: Service) -> None:
    data = ("--rows", "1000", "--tokens", "200000")
    out, _ = recommend(service, "--goal", "style", "--model", "tiny", *data, "--gpu-gb", "24")
    lines = out.splitlines()
    assert lines[0] == "tiny for style: 1,000 rows, 200,000 tokens to learn"
    assert "tuning lora" in lines
    assert lines[lines.index("tuning lora") + 1].startswith("  A style or a format is little to learn")
    assert "LIMA" in lines[lines.index("tuning lora") + 2]
    assert any(line.startswith("fits 24 GB: 0.") for line in lines)
    assert [line for line in lines if line.startswith("  costs: ")][2:] == []
    assert "change your mind when" in lines
    assert lines[-1].startswith(
        'in a job\'s spec: {"method": {"type": "supervised"}, "tuning": {"type": "lora", "r": 1'
    )


def test_a_file_here_is_uploaded_once_and_asked_about(service: Service, tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": f"Box {number} is red."} for number in range(7)])
    asked = ("--goal", "new_knowledge", "--model", "tiny", "--file", str(path), "--json")
    found: list[dict[str, Any]] = [json.loads(recommend(service, *asked)[0]) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["data"]["rows"] == 7
    assert found[0]["method"]["value"] == "continued_pretraining"
    assert found[0]["hardware"] == ["cpu"]
    files = [file for file in service.client().files.list() if file.filename == "texts.jsonl"]
    assert len(files) == 1
    assert json.loads(recommend(service, *asked[:5], files[0].id, "--json")[0]) == found[0]


def test_a_wrong_word_is_named(service: Service) -> None:
    _, err = recommend(service, "--goal", "fame", "--model", "tiny", code=1)
    assert err.startswith("goal: Input should be 'style', 'task', ")
    _, err = recommend(service, "--goal", "style", "--model", "tinny", code=1)
    assert "Nearest: tiny" in err
    recommend(service, "--model", "tiny", code=2)
