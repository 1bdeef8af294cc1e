"""`finetuned files check`: what a job would train on, and what is wrong with it, before there is a job."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli import asking
from app.cli.client import AsJson, Client, connected

BAR = 40
"""Characters of the longest bar of the histogram."""


def check(
    file: asking.FileArgument,
    model: asking.Model,
    method: asking.MethodOption = "supervised",
    max_length: asking.MaxLength = None,
    truncate: asking.Truncate = False,
    train_on: asking.TrainOn = "auto",
    packing: asking.Packing = "auto",
    holdout: asking.Holdout = None,
    validation: asking.Validation = None,
    findings: Annotated[Path | None, typer.Option(help="Write every finding to this file, as JSON lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every row as a job would train on it; exit code 1 where such a job would be refused."""
    client = connected()
    file_id = asking.file_id(client, file)
    asked = asking.settings(
        model=model,
        method=method,
        max_length=max_length,
        truncate=truncate,
        train_on=train_on,
        packing=packing,
        holdout=holdout,
        validation=asking.file_id(client, validation) if validation else None,
    )
    report = asking.made(lambda: client.get(f"/v1/files/{file_id}/report", **asked))
    if findings is not None:
        _download(client, f"/v1/files/{file_id}/report/findings", asked, findings)
    if as_json:
        print(json.dumps(report))
    else:
        _print(report, file)
    raise typer.Exit(1 if report["status"] == "refused" else 0)


def _download(client: Client, path: str, asked: dict[str, Any], target: Path) -> None:
    with client.stream(path, **asked) as response, target.open("wb") as file:
        for chunk in response.iter_bytes():
            file.write(chunk)


def _print(report: dict[str, Any], name: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    training = report["training"]
    what = training["format"]
    packed_in = f", {what['compression']}" if what["compression"] else ""
    console.print(f"[bold]{escape(name)}[/]: {report['file_id']}, {what['container']}{packed_in}, {what['shape']}")
    if what["conversion"]:
        console.print(f"read as: {escape(what['conversion']['what'])}")
    for part, label in ((training, "training"), (report["validation"], "validation")):
        if part is not None:
            console.print(f"{label}: {_counts(part)}")
    for sentence in _resolved(report):
        console.print(sentence)
    if training["lengths"]:
        _print_lengths(console, training["lengths"])
    for found in report["findings"]:
        colour = "red" if found["severity"] == "error" else "yellow"
        places = ", ".join(_place(where) for where in found["first"][:5]) + (", …" if found["rows"] > 5 else "")
        console.print(f"[{colour}]{found['severity']}[/] {found['code']} in {found['rows']} rows ({places})")
        console.print(f"  {escape(found['example'])}")
    for note in report["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}")
    if report["status"] == "refused":
        console.print("[red]A job with these settings would be refused.[/]")
    else:
        console.print("[green]A job with these settings would train.[/]")


def _counts(part: dict[str, Any]) -> str:
    rows = part["rows"]
    others = [f"{rows[name]} {said}" for name, said in (("held_out", "held out"), ("refused", "refused")) if rows[name]]
    of = f" of {rows['total']} ({', '.join(others)})" if others else ""
    share = f"{100 * part['trained_share']:.0f} %"
    return f"{rows['used']} rows{of}, {part['tokens']} tokens, {part['trained_tokens']} of them trained ({share})"


def _resolved(report: dict[str, Any]) -> list[str]:
    said = [f"answers are found by: {escape(report['template'])}"] if report["template"] else []
    made = report["train_set"]
    if made and made["packs"] is not None:
        said.append(f"packed into {made['packs']} sequences, which saves {100 * made['packing_saves']:.0f} % of tokens")
    return said + [
        f"overlap with {escape(one['name'])}: {one['exact']} rows the same, {one['near']} nearly"
        for one in report["overlaps"]
    ]


def _print_lengths(console: Console, lengths: dict[str, Any]) -> None:
    quantiles = ", ".join(f"{name} {lengths[name]}" for name in ("min", "p50", "p90", "p95", "p99", "max"))
    console.print(f"tokens a row: {quantiles}")
    table = Table(box=None, show_header=False, pad_edge=False)
    most = max(one["rows"] for one in lengths["histogram"])
    for one in lengths["histogram"]:
        bar = "█" * round(BAR * one["rows"] / most)
        table.add_row(f"{one['above'] + 1} to {one['upto']}", str(one["rows"]), bar)
    console.print(table)


def _place(where: dict[str, Any]) -> str:
    if where["line"] is not None:
        return f"line {where['line']}"
    return f"row {where['row']}" if where["row"] is not None else "the file"
