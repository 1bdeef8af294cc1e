"""`finetuned plan`: what a job would take, before there is one."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.client import AsJson, Client, CommandFailed, Refused, connected
from app.cli.submit import FILES, place, read_spec, uploaded

SHOWN = 0.005
"""GiB; what rounds to nothing is left out of the breakdown."""
PATIENCE = 30.0
"""Seconds for a dry run: some ten of one core, where it is not known already."""
INTERVAL = 0.5
BASES = {"formula": "by the formula", "dry_run": "counted by a dry run"}


def plan(
    spec: Annotated[Path, typer.Argument(metavar="job.yaml", help="A job spec; 'finetuned init' writes one.")],
    as_json: AsJson = False,
    wait: Annotated[bool, typer.Option(help="Wait up to 30 s for the dry run, which counts memory exactly.")] = True,
) -> None:
    """Plan a job: what fits, how long it takes, what would make it fit; exit code 1 where it fits nowhere here.

    Without a file: `training_file: null` and `assume: {rows: …, tokens: …, longest: …}`.
    """
    client = connected()
    text, body = read_spec(spec)
    try:
        with_files = {name: uploaded(client, spec, body[name], as_json=as_json) for name in FILES if body.get(name)}
        found = client.post("/v1/fine_tuning/plans", body | with_files)
        if wait:
            found = _dry_run(client, found)
    except Refused as error:
        raise CommandFailed(f"{place(spec, text, error.param)}{error}") from error
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    raise typer.Exit(0 if found["fits"] else 1)


def _dry_run(client: Client, found: dict[str, Any]) -> dict[str, Any]:
    """The plan once its dry run is there, or as it is when patience is at its end."""
    deadline = time.monotonic() + PATIENCE
    while found["dry_run"]["status"] == "in_progress" and time.monotonic() < deadline:
        time.sleep(INTERVAL)
        found = client.get(f"/v1/fine_tuning/plans/{found['id']}")
    return found


def show(found: dict[str, Any]) -> None:
    """As sentences and tables."""
    console = Console(highlight=False)
    memory, took, data = found["memory"], found["duration"], found["data"]
    verdict = "fits" if found["fits"] else "[bold]does not fit[/bold]"
    console.print(
        f"It {verdict} [bold]{escape(found['device'])}[/bold]: {memory['train_peak_gib']:.1f} GiB while training"
        f" (the {escape(memory['at'])} is the peak), {memory['eval_peak_gib']:.1f} GiB while evaluating"
        f" ({BASES[memory['basis']]})."
    )
    if found["dry_run"]["status"] != "succeeded":
        why = found["dry_run"]["reason"] or f"none yet; GET /v1/fine_tuning/plans/{found['id']} has it later."
        console.print(f"  no dry run: {escape(why)}")
    parts = ", ".join(
        f"{name.replace('_', ' ')} {size:.2f}" for name, size in memory["breakdown_gib"].items() if size >= SHOWN
    )
    console.print(f"  of which {parts}")
    console.print(
        f"{data['rows']:,} rows, {data['tokens']:,} tokens ({data['basis']}), the longest row {data['longest_row']:,}:"
        f" {found['steps']:,} steps, {_spell(took['seconds'])} ({_spell(took['low'])} to {_spell(took['high'])};"
        f" by {escape(took['basis'])})."
    )
    adapter = f", adapter {_size(found['adapter_bytes'])}" if found["adapter_bytes"] is not None else ""
    console.print(
        f"{found['trainable_params']:,} parameters trained{adapter}; {_size(found['disk']['worker'])} on the worker's"
        f" disk, {_size(found['disk']['storage'])} in the storage."
    )
    console.print(_devices(found["devices"]))
    for change in found["changes"]:
        console.print(
            f"To make it fit: {change['param']} {json.dumps(change['value'])} →"
            f" {change['train_peak_gib']:.1f} GiB. {escape(change['cost'])}"
        )
    for warning in found["warnings"]:
        console.print(
            f"[yellow]{warning['code']}[/yellow]: {escape(warning['message'])} {escape(warning['suggestion'] or '')}"
        )
    for path, why in found["reasons"].items():
        name, value = path.rsplit(".", 1)[-1], _value(found["resolved"], path)
        console.print(f"[bold]{name} {value}[/bold]: {escape(why['reason'])} ({escape(why['source'])})")


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = Table("device", "GiB", "takes", "fits", box=None, pad_edge=False, show_edge=False)
    for one in devices:
        name = f"{one['name']} (here)" if one["here"] else one["name"]
        room = one["headroom_gib"]
        fits = f"yes, {room:.1f} left" if one["fits"] else f"no, {-room:.1f} missing"
        table.add_row(escape(name), f"{one['gib']:.1f}", f"{one['peak_gib']:.1f}", fits)
    return table


def _value(resolved: dict[str, Any], path: str) -> str:
    value: Any = resolved
    for name in path.split("."):
        value = value[name]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _spell(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
