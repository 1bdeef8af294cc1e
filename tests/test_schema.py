"""The live server against its own OpenAPI description: generated requests, alone and in sequences that follow ids."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.jobs.status import FINAL
from tests.running import Service

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.mark.timeout(900)
def test_no_request_is_a_server_error_or_answered_otherwise_than_described(
    service: Service, request: pytest.FixtureRequest
) -> None:
    """`pytest tests/test_schema.py --schema-examples 200` looks longer."""
    runner = Path(sys.executable).with_name("st")
    result = subprocess.run(
        [
            *(runner, "run", f"{service.url}/openapi.json", "-H", f"Authorization: Bearer {service.key}"),
            *("--checks", ",".join(CHECKS), "--max-examples", str(request.config.getoption("--schema-examples"))),
            # These go on until a job has ended; tests/test_following.py has them.
            *("--exclude-path-regex", "events/stream|logs", "--request-timeout", "20"),
            *("--suppress-health-check", "all", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    _leave_nothing_to_do(service)
    assert result.returncode == 0, result.stdout[-20_000:]
    assert "Stateful" in result.stdout
    assert service.get("/healthz") == {"status": "ok"}


def _leave_nothing_to_do(service: Service) -> None:
    """Others would wait for it: there may be dozens of reports, of some seconds each."""
    client = service.client()
    for job in client.fine_tuning.jobs.list():
        if job.status not in FINAL:
            client.fine_tuning.jobs.cancel(job.id)
    for file in client.files.list():
        client.files.delete(file.id)
