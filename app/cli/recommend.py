"""`finetuned recommend`: what to train with for a goal, why, what else, and what to measure."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from app.cli import asking
from app.cli.client import AsJson, connected

CHOICES = (
    "method",
    "tuning",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "learning_rate",
    "n_epochs",
)


def recommend(
    goal: Annotated[str, typer.Option(help="style, task, new_knowledge, preference or reasoning.")],
    model: asking.Model,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The rows: a file here, uploaded once, or the id of one.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="How many rows, where no file is named.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How many tokens are to be learnt in one pass.")] = None,
    longest_row: Annotated[int | None, typer.Option(min=1, help="Tokens of the longest row.")] = None,
    rows_are: Annotated[str | None, typer.Option(help="answers, text, preferences, judged or prompts.")] = None,
    grader: Annotated[bool, typer.Option("--grader", help="Answers can be checked by a grader.")] = False,
    gpu_gb: Annotated[
        list[int] | None, typer.Option(min=1, help="GB of a GPU; may be repeated; absent: the server's workers.")
    ] = None,
    priority: Annotated[str, typer.Option(help="balanced, quality, cost, memory or forgetting.")] = "balanced",
    as_json: AsJson = False,
) -> None:
    """Recommend method, tuning and numbers, each with its reason and source; nothing is trained."""
    client = connected()
    asked = {
        "goal": goal,
        "model": model,
        "priority": priority,
        "training_file": asking.file_id(client, file) if file else None,
        "rows": rows,
        "tokens": tokens,
        "longest_row": longest_row,
        "rows_are": rows_are,
        "grader": grader,
        "gpu_memory_gb": gpu_gb or None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    found = client.post("/v1/fine_tuning/recommendations", given)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(found['model'])}[/] for {found['goal']}: {_data(found['data'])}")
    for name in CHOICES:
        choice = found[name]
        if choice["value"] is not None:
            console.print(f"[bold]{name}[/] [green]{escape(_shown(choice['value']))}[/]")
            console.print(f"  {escape(choice['reason'])}")
            console.print(f"  [dim]{escape(choice['source'])}[/]")
    if found["trained_params"] is not None:
        console.print(f"{found['trained_params']:,} parameters are trained")
    for device in found["devices"]:
        colour, word = ("green", "fits") if device["fits"] else ("red", "does not fit")
        console.print(
            f"[{colour}]{word}[/] {escape(device['name'])}: {device['train_peak_gib']:.1f} of {device['gib']:.1f} GiB"
        )
    console.print("\n[bold]next best[/]")
    for other in found["alternatives"]:
        console.print(f"{other['method']}, {_tuning(other['tuning'])}: {escape(other['why'])}")
        console.print(f"  costs: {escape(other['costs'])}")
        console.print(f"  [dim]{escape(other['source'])}[/]")
    console.print("\n[bold]change your mind when[/]")
    for check in found["change_your_mind"]:
        console.print(f"measured: {escape(check['measure'])}")
        console.print(f"  {escape(check['threshold'])} → {escape(check['then'])}")
        console.print(f"  [dim]{escape(check['source'])}[/]")
    for note in found["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}")
    console.print(f"\nin a job's spec: {escape(json.dumps(found['spec']))}")


def _data(data: dict[str, Any]) -> str:
    basis = {"given": "", "report": " (counted for this base)", "estimate": " (estimated from the file's size)"}
    said = [f"{data['rows']:,} rows"] if data["rows"] is not None else []
    if data["tokens"] is not None:
        said.append(f"{data['tokens']:,} tokens to learn{basis[data['basis']]}")
    return ", ".join(said) or "of rows nothing is known"


def _shown(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _tuning(block: dict[str, Any]) -> str:
    return f"{block['type']}, r {block['r']}" if "r" in block else str(block["type"])
