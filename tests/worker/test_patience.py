"""A lost connection costs an attempt a moment, and nothing else."""

import pytest
from sqlalchemy import func, literal, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import new_session
from tests.conftest import SetSettings
from worker import patience
from worker.patience import patient


def cut(session: Session, pid: int) -> None:
    """End a connection, from another."""
    with session.begin():
        session.scalar(select(func.pg_terminate_backend(pid)))


def test_who_loses_the_connection_asks_again_on_another(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    asked_by: list[int] = []

    @patient
    def ask(number: int) -> int:
        with new_session() as mine, mine.begin():
            asked_by.append(mine.scalars(select(func.pg_backend_pid())).one())
            if len(asked_by) == 1:
                cut(session, asked_by[0])
            return mine.scalars(select(literal(number))).one()

    assert ask(7) == 7
    assert len(set(asked_by)) == len(asked_by) == 2


def test_patience_has_an_end(session: Session, monkeypatch: pytest.MonkeyPatch, set_settings: SetSettings) -> None:
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    set_settings(database_patience=0.1)
    asked = 0

    @patient
    def ask() -> None:
        nonlocal asked
        asked += 1
        with new_session() as mine, mine.begin():
            cut(session, mine.scalars(select(func.pg_backend_pid())).one())
            mine.scalars(select(func.now())).one()

    with pytest.raises(OperationalError):
        ask()
    assert asked > 1
