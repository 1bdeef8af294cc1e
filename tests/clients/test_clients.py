"""The stock clients, each in an environment of its own, do one walk unchanged; `make test-all` runs them too."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.running import Service

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "clients"
PYTHON_VERSIONS = ("1.109.1", "2.54.0", "3.54.0")
NODE_VERSION = "latest"

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


def python_client(version: str) -> list[str]:
    """The command that runs the walk on a version of the Python client; installed once."""
    folder = BUILD / f"python-{version}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"openai=={version}"], check=True)
        (folder / "installed").touch()
    return [str(python), str(HERE / "walk.py")]


def node_client() -> list[str]:
    """The same on the newest client for Node; skipped by name where there is no Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    folder = BUILD / "node"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "openai").exists():
        subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", f"openai@{NODE_VERSION}"], cwd=folder, check=True
        )
    shutil.copy(HERE / "walk.mjs", folder)  # a module looks for others beside itself
    return [node, str(folder / "walk.mjs")]


def walked(service: Service, command: list[str], tmp_path: Path) -> dict[str, Any]:
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.chat_rows(40))
    environment = {"PATH": os.environ["PATH"], "OPENAI_BASE_URL": f"{service.url}/v1", "OPENAI_API_KEY": service.key}
    result = subprocess.run([*command, str(rows), "tiny"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def assert_walked(seen: dict[str, Any]) -> None:
    assert seen["first"].startswith("Created fine-tuning job: ftjob-")
    del seen["first"]
    assert seen == {
        "file": "processed",
        "status": "succeeded",
        "error": None,
        "own": 4,
        "epochs": 2,
        "last": "The job has successfully completed",
        "metrics": 10,
        "steps": [10, 5],
        "rows": "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "lines": 11,
        "known": True,
        "paused": "paused",
        "resumed": "queued",
        "cancelled": "cancelled",
        "found": True,
        "paged": True,
        "deleted": True,
        "missing": {"code": "not_found", "type": "not_found_error", "request_id": True},
        "refused": {"param": "tunning", "code": "unknown_parameter", "helps": True},
    }


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_the_stock_python_client_walks_unchanged(service: Service, version: str, tmp_path: Path) -> None:
    assert_walked(walked(service, python_client(version), tmp_path))


def test_the_stock_node_client_walks_unchanged(service: Service, tmp_path: Path) -> None:
    assert_walked(walked(service, node_client(), tmp_path))
