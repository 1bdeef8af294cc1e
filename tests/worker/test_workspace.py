"""Scratch folders: handed from attempt to attempt, and removed when nobody needs them."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.auth import Project
from app.settings import get_settings
from app.work.lifecycle import Claim
from app.work.status import WorkKind
from tests.factories import make_job
from worker import workspace

DAY = timedelta(days=1)


@pytest.fixture
def own_home(tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FINETUNED_HOME", str(tmp_path))
    get_settings.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    get_settings.cache_clear()


def _claim(attempt: int, job_id: str = "ftjob-1") -> Claim:
    return Claim(work_id=1, kind=WorkKind.TRAIN, subject=job_id, attempt=attempt, failed_attempts=0)


def _aged(folder: Path) -> Path:
    two_days_ago = time.time() - 2 * DAY.total_seconds()
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (two_days_ago, two_days_ago))
    return folder


def test_an_attempt_takes_over_the_folder_of_the_one_before(own_home: Path) -> None:
    first = workspace.opened(_claim(1))
    (first / "checkpoints").mkdir()

    third = workspace.opened(_claim(3))

    assert (third / "checkpoints").is_dir()
    assert not first.exists()
    assert workspace.opened(_claim(3)) == third


def test_what_is_left_of_ended_jobs_goes_after_its_time_and_nothing_else(
    own_home: Path, session: Session, project: Project
) -> None:
    with session.begin():
        waiting = make_job(session, project).id
    ended, fresh, unfinished = (workspace.opened(_claim(1, name)) for name in ("ftjob-ended", "ftjob-other", waiting))
    _aged(ended.parent)
    _aged(unfinished.parent)
    _aged(fresh.parent)
    (fresh / "trainer.log").write_text("another database's job, still at work")

    workspace.prune(DAY)

    assert not ended.parent.exists()
    assert fresh.exists()
    assert unfinished.exists()
