"""`finetuned models | download`: what jobs have made, and to have it here, every byte checked."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import wrap_file
from rich.table import Table

from app.cli.client import AsJson, Client, CommandFailed, connected


def models(
    checkpoints: Annotated[bool, typer.Option(help="Checkpoints too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="The newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the models that jobs have made, newest first."""
    found = connected().get("/v1/registry/models", limit=limit, checkpoints=str(checkpoints).lower())["data"]
    if as_json:
        print(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "kind", "base", "loss", "size"):
        table.add_column(column, overflow="fold")
    for entry in found:
        table.add_row(
            entry["id"],
            entry["kind"],
            entry["base"]["id"],
            f"{entry['metrics']['loss_last']:.4f}",
            f"{entry['bytes'] / 1024**2:,.1f} MiB",
        )
    Console(width=None if Console().is_terminal else 200).print(table)


def download(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A result or a checkpoint.")],
    to: Annotated[Path, typer.Option(help="The folder that gets the model's folder.")] = Path(),
) -> None:
    """Download a model into a folder of its own, and check each file against the registry."""
    client = connected()
    print(fetch(client, client.get(f"/v1/registry/models/{model}"), to))


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A result or a checkpoint.")], as_json: AsJson = False
) -> None:
    """Have the server read all bytes of a model, and say whether they are what was published."""
    found = connected().get(f"/v1/registry/models/{model}/verify")
    damaged = [file for file in found["files"] if file["problem"] is not None]
    if as_json:
        print(json.dumps(found))
    elif not damaged:
        print(f"{found['model']}: {len(found['files'])} files, every byte as it was published")
    if damaged:
        told = "; ".join(f"{file['name']}: {file['problem']}" for file in damaged)
        raise CommandFailed(
            f"'{found['model']}' is damaged: {told}. Restore its blobs from a backup, or train it again."
        )


def fetch(client: Client, entry: dict[str, Any], to: Path) -> Path:
    """A registry's model as a folder in a folder, every byte checked. Raises `CommandFailed`."""
    try:
        folder = _unpacked(client, entry, to)
    except tarfile.TarError as error:
        raise CommandFailed(f"The download of '{entry['id']}' broke off ({error}). Download it again.") from error
    _require_whole(folder, entry)
    return folder


def _unpacked(client: Client, entry: dict[str, Any], to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    name = None
    with client.stream(f"/v1/registry/models/{entry['id']}/download") as response:
        source = io.BufferedReader(_Arriving(response.iter_bytes()), buffer_size=1024 * 1024)
        console = Console(stderr=True)
        with (
            wrap_file(source, total=entry["bytes"], description="downloading", console=console, transient=True) as file,
            tarfile.open(fileobj=file, mode="r|") as tar,
        ):
            for member in tar:
                name = member.name.split("/")[0]
                tar.extract(member, to, filter="data")
    if name is None:
        raise CommandFailed(f"'{entry['id']}' has no files.")
    return to / name


class _Arriving(io.RawIOBase):
    """A streamed answer as the file that `tarfile` reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pending:
            self._pending = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def _require_whole(folder: Path, entry: dict[str, Any]) -> None:
    for file in entry["files"]:
        path = folder / file["name"]
        if not path.is_file() or _sha256_of(path) != file["sha256"]:
            raise CommandFailed(f"{path} is not what the registry has. Download it again.")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
