"""The README's first job, word for word, as a newcomer pastes it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import Service

README = Path(__file__).parents[1] / "README.md"
ELSEWHERE = ("make setup", ".venv/bin/python -m worker.training.smollm2")
"""How the blocks begin that other tests and `make demo` run: the start of the service, and fetching the base."""


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of the chapters on the first job and its data."""
    chapter = README.read_text().split("\n## The first job\n")[1].split("\n## Following a job\n")[0]
    found: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if not text.startswith(ELSEWHERE)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands use curl")
def test_the_first_job_of_the_readme_runs_as_it_stands(service: Service, tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (home / ".finetuned").symlink_to(service.home)
    script = ["set -euo pipefail"]
    for number, (language, text) in enumerate(blocks()):
        text = text.replace("http://127.0.0.1:8000", service.url).replace("smollm2-135m-instruct", "tiny")
        text = text.replace(".venv/bin/finetuned", f"{sys.executable} -m app.cli")
        # The example that is written names the same base.
        text = re.sub(
            r"^(.* init example) .*$",
            r"\1\nsed -i s/smollm2-135m-instruct/tiny/ example/job.yaml",
            text,
            flags=re.MULTILINE,
        )
        if language == "python":
            (here / f"block-{number}.py").write_text(text)
            text = f"{sys.executable} block-{number}.py"
        script.append(text)
    assert len(script) == 7

    newcomers = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNED_")}
    done = subprocess.run(
        ["/bin/bash", "-c", "\n".join(script)],
        cwd=here,
        env={**newcomers, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "The job has successfully completed" in done.stdout
    assert '"error"' not in done.stdout.replace('"error": null', "").replace('"error":null', "")
    assert "A job with these settings would train." in done.stdout
    assert "Get it: finetuned download ft:tiny:default:support-json:" in done.stdout
    (config,) = here.glob("ft-tiny-default-boxes-*/adapter_config.json")
    assert json.loads(config.read_text())["base_model_name_or_path"] == "tiny"
    assert (config.parent / "adapter_model.safetensors").exists()
