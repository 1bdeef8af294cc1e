"""`finetuned files`: rows on the server."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.check import check
from app.cli.client import AsJson, connected
from app.cli.preview import preview
from app.cli.submit import upload_once

app = typer.Typer(help="Files.", no_args_is_help=True)
app.command()(check)
app.command()(preview)


@app.callback()
def files() -> None:
    """Files."""


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    as_json: AsJson = False,
) -> None:
    """Upload a file and print its id; bytes that the server has already are not sent again."""
    uploaded = upload_once(connected(), file, purpose)
    print(json.dumps(uploaded) if as_json else uploaded["id"])
