"""Every migration can be undone, and together they make the tables that the models describe."""

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from app.cli import migrate
from app.db import Base, get_engine


def test_migrations_go_up_down_and_up_again(session: Session) -> None:
    command.downgrade(migrate.config(), "base")
    assert set(inspect(get_engine()).get_table_names()) <= {"alembic_version"}

    command.upgrade(migrate.config(), "head")

    assert set(Base.metadata.tables) <= set(inspect(get_engine()).get_table_names())


def test_the_models_ask_for_nothing_that_migrations_do_not_make(session: Session) -> None:
    command.check(migrate.config())  # raises when autogenerate would write something


def test_each_migration_is_undone_alone(session: Session) -> None:
    scripts = list(ScriptDirectory.from_config(migrate.config()).walk_revisions())

    for _ in scripts:
        command.downgrade(migrate.config(), "-1")
        command.upgrade(migrate.config(), "+1")
        command.downgrade(migrate.config(), "-1")

    command.upgrade(migrate.config(), "head")
    with pytest.raises(Exception, match=r"already exists|Relation"):
        Base.metadata.create_all(get_engine(), checkfirst=False)
