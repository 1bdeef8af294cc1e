"""`finetuned keys`: make the keys that callers need."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from app.auth import all_keys, any_key, authenticate, create_key
from app.cli.embedded import CannotStart
from app.db import new_session
from app.errors import NotAuthenticated

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str, typer.Option(help="The project it acts for; made if it is new.")] = "default",
) -> None:
    """Make a key and print it; it cannot be shown again."""
    with new_session() as session, session.begin():
        print(create_key(session, project, name))


@app.command(name="list")
def list_keys() -> None:
    """Show what keys there are, never the keys themselves; a project's id is what permissions name it by."""
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "project", "project id", "created", "until"):
        table.add_column(column, no_wrap=True)
    with new_session() as session, session.begin():
        for key, project in all_keys(session):
            ends = min((end for end in (key.expires_at, key.revoked_at) if end), default=None)
            until = f"{ends:%Y-%m-%d}" if ends else ""
            table.add_row(key.id, key.name, project.name, project.id, f"{key.created_at:%Y-%m-%d}", until)
    Console(width=None if Console().is_terminal else 200).print(table)


def of_home(home: Path) -> str:
    """The key in `HOME/api-key`; made at the first start. Raises `CannotStart` for a key of another database."""
    path = home / "api-key"
    with new_session() as session, session.begin():
        if path.exists():
            return _known(path, session)
        key = create_key(session, "default", "first start")
    # After the commit, and whole or not at all: a file with a key that no database has would stop every later start.
    arriving = home / "api-key.arriving"
    arriving.unlink(missing_ok=True)
    descriptor = os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    arriving.replace(path)
    return key


def _known(path: Path, session: Session) -> str:
    key = path.read_text().strip()
    try:
        authenticate(session, key)
    except NotAuthenticated as error:
        raise CannotStart(
            f"The key in {path} is not one of this database. Remove the file to get a new one, or point"
            " FINETUNED_DATABASE_URL at the database it came with."
        ) from error
    return key


def any_there() -> bool:
    """Whether anybody could call this server."""
    with new_session() as session, session.begin():
        return any_key(session)
