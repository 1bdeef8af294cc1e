"""What `finetuned files check` and `files preview` share: the file, the settings, and patience while it is made."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import Client, CommandFailed

FILE_ID = "file-"
PATIENCE = 3600.0
"""Seconds."""

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A file here, or the id of one on the server.")]
Model = Annotated[str, typer.Option(help="The base model, as in a job's spec.")]
MethodOption = Annotated[str, typer.Option(help="supervised, continued_pretraining, dpo, kto, …")]
MaxLength = Annotated[int | None, typer.Option(min=8, help="Tokens a row may have; absent: the model's context.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut longer rows instead of refusing them.")]
TrainOn = Annotated[str, typer.Option(help="completion or all.")]
Packing = Annotated[str, typer.Option(help="auto, true or false.")]
Holdout = Annotated[float | None, typer.Option(min=0, max=0.5, help="Share kept for validation; absent: auto.")]
Validation = Annotated[str | None, typer.Option(metavar="FILE", help="A validation file, to be compared with.")]


def settings(
    *,
    model: str,
    method: str,
    max_length: int | None,
    truncate: bool,
    train_on: str,
    packing: str,
    holdout: float | None,
    validation: str | None,
) -> dict[str, Any]:
    """As the server takes them; what is absent is left to it. `validation` is a file's id."""
    given: dict[str, Any] = {
        "model": model,
        "method": method,
        "max_length": max_length,
        "truncate": truncate or None,
        "train_on": train_on,
        "packing": {"true": True, "false": False}.get(packing, packing),
        "holdout": holdout,
        "validation_file": validation,
    }
    return {name: value for name, value in given.items() if value is not None}


def file_id(client: Client, given: str) -> str:
    """Of a file on the server: as it is given, or of the same bytes, or after an upload of them, usable or not."""
    path = Path(given).expanduser()
    if given.startswith(FILE_ID) and not path.exists():
        return given
    if not path.is_file():
        raise CommandFailed(f"There is no file '{given}'. Name a file here, or the id of one on the server.")
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    known = client.get("/v1/files", purpose="fine-tune", sha256=digest, limit=1)["data"]
    file: dict[str, Any] = known[0] if known else client.upload(path, "fine-tune")
    return str(file["id"])


def made(ask: Callable[[], Any]) -> Any:
    """The answer once there is one; asked again each second until then."""
    deadline = time.monotonic() + PATIENCE
    while (answer := ask()).get("status") == "in_progress":
        if time.monotonic() > deadline:
            raise CommandFailed("The server is still at it after an hour. Is a worker for the queue 'prepare' running?")
        time.sleep(1)
    return answer
