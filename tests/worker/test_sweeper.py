"""What the sweeper puts right, apart from what the fault tests kill for it."""

from datetime import timedelta

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.work import service
from app.work.models import Worker
from tests.factories import WHO, make_job
from worker.sweeper import sweep


def test_work_that_nobody_heard_of_is_rung_for_again(session: Session, project: Project) -> None:
    with session.begin():
        assert sweep(session, take_back=False) == []
        make_job(session, project)

    with session.begin():
        assert sweep(session, take_back=False) == ["prepare"]


def test_workers_that_ended_without_a_word_are_struck_off_after_a_week(session: Session) -> None:
    with session.begin():
        service.hear(session, WHO, queue="cpu", pid=1)
        sweep(session, take_back=False)
        assert [worker.id for worker, _, _ in service.workers(session)] == [WHO.worker_id]
        session.execute(update(Worker).values(heard_at=func.now() - timedelta(days=8)))

    with session.begin():
        sweep(session, take_back=False)
        assert service.workers(session) == []
