"""Who imports whom, seen from the outside: by starting the processes' entry modules and looking what came with them."""

import subprocess
import sys

import pytest

TORCH = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate")
LATER = ("pyarrow", "numpy", "opentelemetry.sdk")
"""A fifth of a second and more of each process's start, where they are imported before there is a use for them."""


@pytest.mark.parametrize("module", ["app.main", "app.cli.main", "worker.main", "worker.sweeper"])
def test_only_a_trainer_imports_torch_and_nobody_what_may_not_be_used(module: str) -> None:
    assert not set(_imported_by(module)) & {*TORCH, *LATER}


@pytest.mark.parametrize("module", ["worker.main", "worker.sweeper", "worker.training.__main__"])
def test_a_worker_knows_no_http_server(module: str) -> None:
    assert "fastapi" not in _imported_by(module)


def test_a_trainer_knows_no_database_and_no_broker() -> None:
    assert not set(_imported_by("worker.training.__main__")) & {"sqlalchemy", "psycopg", "celery", "kombu", "redis"}


def _imported_by(module: str) -> list[str]:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
