"""Without standbys: a trainer is started for a job that is on its way, and for no other."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import running, tiny
from tests.running import Service, wait_for
from worker.standby import NICENESS


@pytest.fixture(scope="module")
def sparing() -> Iterator[Service]:
    """A service that keeps no trainer ready."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        with running.up(Path(folder), FINETUNED_STANDBY="0") as service:
            yield service


def submit(service: Service, *, max_length: int | str) -> str:
    return service.submit(service.upload(tiny.chat_rows(8)), max_length=max_length, max_steps=3, batch_size=4)


def expected(service: Service) -> psutil.Process | None:
    """The trainer that was started for whatever comes."""
    trainers = (one for one in service.trainers() if "worker.training" in running.cmdline(one))
    return next(trainers, None)


def status_of(service: Service, job_id: str) -> str:
    return service.client().fine_tuning.jobs.retrieve(job_id).status


@pytest.mark.long
def test_a_trainer_does_its_imports_while_its_jobs_files_are_prepared(sparing: Service) -> None:
    assert expected(sparing) is None
    job_id = submit(sparing, max_length="auto")
    early = wait_for(lambda: expected(sparing), 20)
    assert status_of(sparing, job_id) == "validating_files"

    trainer = wait_for(lambda: sparing.trainer_of(job_id), 60)

    assert trainer.pid == early.pid
    assert trainer.nice() == NICENESS  # on a CPU, that those who answer requests go first
    if (group := Path(f"/proc/{trainer.pid}/autogroup")).exists():
        assert group.read_text().split()[-1] == str(NICENESS)
    ended = sparing.finished(job_id)
    assert ended.status == "succeeded", ended.error
    assert expected(sparing) is None


@pytest.mark.long
def test_an_expected_trainer_goes_when_its_job_comes_to_nothing(sparing: Service) -> None:
    job_id = submit(sparing, max_length=8)
    wait_for(lambda: expected(sparing), 20)

    assert sparing.finished(job_id).error.code == "invalid_training_file"
    wait_for(lambda: expected(sparing) is None, 10)
