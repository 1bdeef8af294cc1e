"""`finetuned jobs | logs | cancel | pause | resume`: what there is, what it prints, and to wish it otherwise."""

import codecs
import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from app.cli.client import LOST_TRIES, AsJson, Client, CommandFailed, Lost, Refused, connected, waits
from app.cli.watch import duration

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
STYLES = {"succeeded": "green", "failed": "red", "running": "cyan", "paused": "yellow"}


def jobs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="The newest so many.")] = 20,
    status: Annotated[list[str] | None, typer.Option(help="Any of these; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this base.")] = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help="Part of an id, a name, a metadata value.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    found = connected().get("/v1/fine_tuning/jobs", limit=limit, status=status, model=model, q=q)["data"]
    if as_json:
        print(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "status", "model", "tuning", "progress", "age", "result"):
        table.add_column(column, no_wrap=column in ("id", "status", "age"), overflow="fold")
    for job in found:
        state = _state(job)
        table.add_row(
            job["id"],
            f"[{STYLES.get(job['status'], 'default')}]{state}[/]",
            job["model"],
            job["tuning"]["type"],
            _progress(job),
            duration(time.time() - job["created_at"]),
            job["fine_tuned_model"] or (job["error"] or {}).get("code", ""),
        )
    Console(width=None if Console().is_terminal else 200).print(table)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, max=100_000, help="The last so many lines.")] = 1000,
) -> None:
    """Print what the job's trainers print."""
    client = connected()
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a connection may break in the middle of a letter
    try:
        for part in followed(client, job_id, tail) if follow else _log(client, job_id, tail=tail):
            print(text.decode(part.content), end="", flush=True)
    except KeyboardInterrupt:
        raise typer.Exit(1) from None


class _Part(NamedTuple):
    """Some of a log."""

    content: bytes
    end: int
    """The bytes of the log up to here."""


def _log(client: Client, job_id: str, **query: Any) -> Iterator[_Part]:
    with client.stream(f"/v1/fine_tuning/jobs/{job_id}/logs", **query) as response:
        if "x-log-start" not in response.headers:
            raise CommandFailed(f"{client.url} answered with no log. Does FINETUNED_URL name a finetuned server?")
        end = int(response.headers["x-log-start"])
        yield _Part(b"", end)
        for content in response.iter_bytes():
            end += len(content)
            yield _Part(content, end)


def followed(client: Client, job_id: str, tail: int) -> Iterator[_Part]:
    """A log until the job has ended, every byte once, however often the connection is lost. Raises `CommandFailed`."""
    place: dict[str, int] = {"tail": tail}
    lost = waits(LOST_TRIES)
    while True:
        answered = False
        try:
            for part in _log(client, job_id, follow="true", **place):
                answered = True
                place, lost = {"after": part.end}, waits(LOST_TRIES)
                yield part
            if client.get(f"/v1/fine_tuning/jobs/{job_id}")["finished_at"] is not None:
                return
        except (Lost, Refused) as error:
            if isinstance(error, Refused) and not error.will_pass:
                raise
        if (wait := next(lost)) is None:
            raise CommandFailed(f"{client.url} does not answer any more. The job goes on: finetuned logs -f {job_id}")
        if not answered:  # else it was most likely a silence: a trainer may have nothing to print for hours
            print(f"Connection lost; trying again in {wait:g} s.", file=sys.stderr, flush=True)
        time.sleep(wait)


def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job: at once where it waits, with its current step where it runs."""
    _wish(job_id, "cancel", as_json=as_json)


def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Set a job aside, with a checkpoint of its current step."""
    _wish(job_id, "pause", as_json=as_json)


def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again."""
    _wish(job_id, "resume", as_json=as_json)


def _wish(job_id: str, wish: str, *, as_json: bool) -> None:
    job = connected().post(f"/v1/fine_tuning/jobs/{job_id}/{wish}")
    print(json.dumps(job) if as_json else f"{job['id']} is {_state(job)}")


def _state(job: dict[str, Any]) -> str:
    """Where it is, and what is wished of it."""
    wished = {"cancel": "cancelling", "pause": "pausing"}.get(job["desired"])
    return f"{job['status']}, {wished}" if wished and job["status"] not in ("cancelled", "paused") else job["status"]


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"] or {}
    if "step" not in progress:
        return str(progress.get("phase", ""))
    loss = f", loss {progress['loss']:.3f}" if "loss" in progress else ""
    return f"{progress['step']}/{progress['total_steps']}{loss}"
