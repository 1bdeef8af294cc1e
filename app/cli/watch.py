"""`finetuned watch`: a job as it happens, with a bar on a terminal and plain lines elsewhere, until it has ended."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, Self

import httpx
import typer
from httpx_sse import connect_sse
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from app.cli.client import LOST_TRIES, AsJson, Client, CommandFailed, Refused, accepted, connected, waits

LINE_EVERY = 10.0
"""Seconds between two lines of numbers where there is no bar."""


class View(Protocol):
    """Where a job's events go."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def hear(self, event: dict[str, Any]) -> None:
        """A sentence, or a step's numbers."""

    def say(self, sentence: str) -> None:
        """Something that is not of the job: a lost connection."""


class Bar:
    """A bar for the steps, below the sentences."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self._bar.add_task("waiting", total=None, numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def hear(self, event: dict[str, Any]) -> None:
        """Numbers move the bar; a sentence goes above it."""
        data = event["data"] or {}
        if "train_loss" in data:
            numbers = numbers_of(data)
            self._bar.update(
                self._task,
                description="training",
                completed=data["step"],
                total=data["total_steps"],
                numbers=f"step {data['step']}/{data['total_steps']}  {numbers}",
            )
        else:
            style = {"warn": "yellow", "error": "red"}.get(event["level"], "")
            self._console.print(f"[dim]{clock(event)}[/] {escape(event['message'])}", style=style, highlight=False)

    def say(self, sentence: str) -> None:
        """Above the bar too."""
        self._console.print(f"[yellow]{escape(sentence)}[/]")


class Lines:
    """A line for each sentence, and one for the numbers every ten seconds."""

    def __init__(self) -> None:
        self._said_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def hear(self, event: dict[str, Any]) -> None:
        """The last step's numbers always come."""
        data = event["data"] or {}
        if "train_loss" in data:
            last = data["step"] == data["total_steps"]
            if time.monotonic() - self._said_at < LINE_EVERY and not last:
                return
            self._said_at = time.monotonic()
            print(f"{clock(event)} step {data['step']}/{data['total_steps']}  {numbers_of(data)}", flush=True)
        else:
            mark = {"warn": "warning: ", "error": "error: "}.get(event["level"], "")
            print(f"{clock(event)} {mark}{event['message']}", flush=True)

    def say(self, sentence: str) -> None:
        """To standard error: it is not of the job."""
        print(sentence, file=sys.stderr, flush=True)


class JsonLines(Lines):
    """Each event as the server sent it, one a line."""

    def hear(self, event: dict[str, Any]) -> None:
        """All of it."""
        print(json.dumps(event), flush=True)


def watch(job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")], as_json: AsJson = False) -> None:
    """Show a job as it happens, from its first event; ends with it: 0 when it succeeded, 1 when it did not."""
    client = connected()
    finish(watched(client, job_id, view_for(as_json=as_json)), as_json=as_json)


def watched(client: Client, job_id: str, view: View) -> dict[str, Any]:
    """Show a job until it has ended; returns it as it is then. Ctrl-C leaves it running, and says how to come back."""
    try:
        with view:
            for event in events(client, job_id, view):
                view.hear(event)
    except KeyboardInterrupt:
        view.say(f"\nThe job goes on. Come back: finetuned watch {job_id}\nEnd it:    finetuned cancel {job_id}")
        raise typer.Exit(1) from None
    job: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{job_id}")
    return job


def events(client: Client, job_id: str, view: View) -> Iterator[dict[str, Any]]:
    """A job's events until it has ended, each once, however often the connection is lost. Raises `CommandFailed`."""
    last: str | None = None
    lost = waits(LOST_TRIES)
    while True:
        try:
            with _stream(client, job_id, last) as source:
                for sent in source:
                    lost = waits(LOST_TRIES)
                    if sent.event == "end":
                        return
                    if not sent.data:  # how soon a browser should come back
                        continue
                    last = sent.id
                    yield sent.json()
            if source.response.status_code == httpx.codes.NO_CONTENT:
                return
        except (httpx.TransportError, Refused) as error:
            if isinstance(error, Refused) and not error.will_pass:
                raise
            reason = str(error) or type(error).__name__
        else:
            reason = "the server ended the stream"
        if (wait := next(lost)) is None:
            raise CommandFailed(f"{client.url} does not answer any more. The job goes on: finetuned watch {job_id}")
        view.say(f"Connection lost ({reason}); trying again in {wait:g} s. The job goes on.")
        time.sleep(wait)


class _Source:
    """A stream's events; none where there is nothing more to come."""

    def __init__(self, response: httpx.Response, sent: Iterator[Any]) -> None:
        self.response = response
        self._sent = sent

    def __iter__(self) -> Iterator[Any]:
        return self._sent


@contextmanager
def _stream(client: Client, job_id: str, last: str | None) -> Iterator[_Source]:
    headers = {"Last-Event-ID": last} if last else {}
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    with connect_sse(client.http, "GET", path, headers=headers) as source:
        if source.response.status_code == httpx.codes.NO_CONTENT:
            yield _Source(source.response, iter(()))
            return
        yield _Source(accepted(source.response), source.iter_sse())


def view_for(*, as_json: bool) -> View:
    """What fits where the output goes."""
    if as_json:
        return JsonLines()
    console = Console()
    return Bar(console) if console.is_terminal else Lines()


def finish(job: dict[str, Any], *, as_json: bool) -> None:
    """Say how a job ended, and end with the code that says it too."""
    if as_json:
        print(json.dumps(job), flush=True)
    elif job["status"] == "succeeded":
        seconds = job["finished_at"] - job["created_at"]
        print(f"{job['id']} succeeded after {seconds} s: {job['fine_tuned_model']}")
        print(f"Get it: finetuned download {job['fine_tuned_model']}")
    elif job["status"] == "failed":
        print(f"{job['id']} failed {told(job['error'])}", file=sys.stderr)
        print(f"Its whole log: finetuned logs {job['id']}", file=sys.stderr)
    else:
        print(f"{job['id']} is {job['status']}", file=sys.stderr)
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def told(error: dict[str, Any]) -> str:
    """A failure's code and cause, below it what to try and what the trainer printed last."""
    said = [f"({error['code']}): {error['message']}"]
    if error.get("suggestion"):
        said.append(f"What to try: {error['suggestion']}")
    if error.get("log_lines"):
        said += ["The trainer's last lines:", *(f"    {line}" for line in error["log_lines"])]
    return "\n".join(said)


def numbers_of(data: dict[str, Any]) -> str:
    """A step's loss, speed and what is left, in a few words."""
    left = data["seconds"] / data["step"] * (data["total_steps"] - data["step"])
    return (
        f"loss {data['train_loss']:.4f}  rate {data['learning_rate']:.2e}  {data['tokens_per_second']:,.0f} tokens/s"
        f"  {duration(left)} left"
    )


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def clock(event: dict[str, Any]) -> str:
    """An event's time of day, here."""
    return time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
