"""`finetuned submit`: a job from a YAML file, its rows uploaded where the server does not have them yet."""

import hashlib
import json
import math
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from app.cli.client import AsJson, Client, CommandFailed, Refused, connected
from app.cli.watch import finish, view_for, watched

FILES = ("training_file", "validation_file")
FILE_ID = "file-"


def submit(
    spec: Annotated[Path, typer.Argument(metavar="job.yaml", help="A job spec; 'finetuned init' writes one.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job; files named by their paths are uploaded first, each only once."""
    client = connected()
    text, body = read_spec(spec)
    try:
        with_files = {name: uploaded(client, spec, body[name], as_json=as_json) for name in FILES if body.get(name)}
        job = client.post(
            "/v1/fine_tuning/jobs", body | with_files, headers={"Idempotency-Key": f"cli-{uuid.uuid4().hex}"}
        )
    except Refused as error:
        raise CommandFailed(f"{place(spec, text, error.param)}{error}") from error
    if watch:
        if not as_json:
            print(job["id"], flush=True)
        finish(watched(client, job["id"], view_for(as_json=as_json)), as_json=as_json)
    elif as_json:
        print(json.dumps(job))
    else:
        print(job["id"])
        print(f"Watch it: finetuned watch {job['id']}", file=sys.stderr)


def read_spec(path: Path) -> tuple[str, dict[str, Any]]:
    """A spec's text, and what it says. Raises `CommandFailed` with the line that cannot be read."""
    try:
        text = path.read_text()
        body = yaml.load(text, Loader=SpecLoader)  # noqa: S506  it is a safe one
        unsendable = list(_unsendable(body))
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}. 'finetuned init' writes an example.") from error
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # some tags raise what Python does
        raise CommandFailed(f"{path} is not YAML: {error}") from error
    if not isinstance(body, dict):
        raise CommandFailed(f"{path} holds no fields. A spec has at least 'model' and 'training_file'.")
    for field, value in unsendable:
        raise CommandFailed(
            f"{place(path, text, field)}{field}: {value!r} cannot be sent. Write a number, or quote it."
        )
    return text, body


class SpecLoader(yaml.SafeLoader):
    """Plain words as YAML 1.2's core schema reads them: `2e-4` is a number, `2026-11-25`, `1:30` and `no` are words.

    PyYAML reads them as YAML 1.1 does.
    """


def _whole_number(loader: SpecLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


TAG = "tag:yaml.org,2002:"
SpecLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (TAG + "null", TAG + "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    SpecLoader.add_implicit_resolver(TAG + tag, re.compile(f"^(?:{pattern})$"), first)
SpecLoader.add_constructor(TAG + "int", _whole_number)


def _unsendable(value: object, field: str = "") -> Iterator[tuple[str, object]]:
    """What JSON has no way to say, each with its place among the fields."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unsendable(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _unsendable(inner, field)
    elif isinstance(value, str):
        value.encode()  # half of a surrogate pair cannot be: UnicodeEncodeError is a ValueError
    elif (isinstance(value, float) and not math.isfinite(value)) or not isinstance(value, int | float | None):
        yield field, value


def uploaded(client: Client, spec: Path, given: object, *, as_json: bool) -> object:
    """The id of a file: as it is given, or of the same bytes on the server, or after an upload of them."""
    if not isinstance(given, str) or (given.startswith(FILE_ID) and not (spec.parent / given).exists()):
        return given
    path = spec.parent / Path(given).expanduser()
    if not path.is_file():
        raise CommandFailed(f"{spec} names the file '{given}', which is not in {path.parent.absolute()}.")
    file = upload_once(client, path)
    if not as_json:
        print(f"{given}: {file['id']}, {file['rows']} rows", file=sys.stderr)
    return file["id"]


def upload_once(client: Client, path: Path, purpose: str = "fine-tune") -> dict[str, Any]:
    """The server's file with these bytes; uploaded if there is none. Raises `CommandFailed` for unusable rows."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    known = client.get("/v1/files", purpose=purpose, sha256=digest, limit=1)["data"]
    file: dict[str, Any] = known[0] if known else client.upload(path, purpose)
    if file["status"] == "error":
        raise CommandFailed(f"{path} cannot be trained on: {file['status_details']}")
    return file


def place(spec: Path, text: str, param: str | None) -> str:
    """`job.yaml, line 7, tuning.r: ` for a refused field, as far as it stands in the file."""
    if param is None:
        return ""
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in param.split("."):
        if not isinstance(node, yaml.MappingNode):
            break
        entry = next(((key, value) for key, value in node.value if key.value == part), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return f"{spec}, line {line}: " if line else f"{spec}: "
