"""A trainer's log in the database: whole lines, bounded, an attempt's own."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import Project
from app.jobs import lifecycle, logs
from app.jobs.models import JobLog
from tests.away import waited_for
from tests.factories import make_queued_job, take
from worker import trainer_log
from worker.trainer_log import LogShipper, as_shown


def shipped(session: Session, job_id: str) -> str:
    with session.begin():
        return logs.tail(session, job_id, 1_000_000).text.decode()


def test_an_attempt_ships_what_it_printed_and_not_what_one_before_it_did(
    session: Session, project: Project, tmp_path: Path
) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
    log = tmp_path / "trainer.log"
    log.write_text("of an attempt before\n")
    with LogShipper(claim, log), log.open("a") as file:
        file.write("one\ntwo\0\nhalf a line")
    assert shipped(session, claim.subject) == "== train, attempt 1 ==\none\ntwo\nhalf a line\n"


def test_a_progress_bar_is_shown_as_a_terminal_leaves_it() -> None:
    assert as_shown("0%\r50%\r100%\nnext\r\n") == "100%\nnext\n"


def test_an_endless_log_is_cut_and_says_so_and_its_end_is_there(
    session: Session, project: Project, tmp_path: Path
) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
    log = tmp_path / "trainer.log"
    with LogShipper(claim, log), log.open("wb") as file:
        file.write(b"x" * 3 * trainer_log.MOST + b"\nOut of memory\n")
    text = shipped(session, claim.subject)
    assert trainer_log.MOST <= len(text) < trainer_log.MOST + 2 * trainer_log.PIECE
    assert "\n== the rest is in trainer.log on the worker; its end will be here too ==\nxxx" in text
    assert text.endswith("x\nOut of memory\n")
    with session.begin():
        *before, last = logs.last_lines(session, claim)
    assert (len(before), last) == (1, "Out of memory")
    assert len(before[0]) < logs.LAST_BYTES


def test_a_worker_that_lost_its_claim_writes_nothing(session: Session, project: Project, tmp_path: Path) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
        lifecycle.requeue(session, claim)
    log = tmp_path / "trainer.log"
    with LogShipper(claim, log):
        log.write_text("too late\n")
    with session.begin():
        assert session.scalars(select(JobLog)).all() == []


def test_the_end_of_a_log_waits_for_a_database_that_is_away(session: Session, project: Project, tmp_path: Path) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
    session.close()
    shipper = LogShipper(claim, tmp_path / "trainer.log").__enter__()
    with waited_for(shipper.__exit__):
        (tmp_path / "trainer.log").write_text("Out of memory\n")
    with session.begin():
        assert logs.last_lines(session, claim) == ["Out of memory"]
