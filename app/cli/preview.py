"""`finetuned files preview`: some rows token by token, and which of the tokens the model learns to say."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli import asking
from app.cli.client import AsJson, CommandFailed, connected

MARKS = ("⟦", "⟧")
"""Around what is trained, where there are no colours."""


def preview(
    file: asking.FileArgument,
    model: asking.Model,
    rows: Annotated[str | None, typer.Option(help="Numbers of rows: 1,5,12; absent: the first three.")] = None,
    lines: Annotated[str | None, typer.Option(help="The same by their lines.")] = None,
    method: asking.MethodOption = "supervised",
    max_length: asking.MaxLength = None,
    truncate: asking.Truncate = False,
    train_on: asking.TrainOn = "auto",
    packing: asking.Packing = "auto",
    holdout: asking.Holdout = None,
    validation: asking.Validation = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as they are trained on: after the chat template, truncation and packing."""
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
    chosen = {name: _numbers(name, given) for name, given in (("rows", rows), ("lines", lines)) if given}
    shown = asking.made(lambda: client.post(f"/v1/files/{file_id}/preview", asked | chosen))
    if as_json:
        print(json.dumps(shown))
        return
    console = Console(highlight=False, soft_wrap=True)
    for row in shown["data"]:
        _print(console, row)


def _numbers(name: str, given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError as error:
        raise CommandFailed(f"--{name} takes numbers with commas between them, such as 1,5,12.") from error


def _print(console: Console, row: dict[str, Any]) -> None:
    place = f"row {row['row']}" if row["line"] is None else f"line {row['line']}"
    if row["problem"] is not None:
        console.print(Text.assemble((f"── {place} ", "bold"), (row["problem"], "red")))
        return
    pack = f", packed with rows {', '.join(map(str, row['pack']))}" if row["pack"] else ""
    for sequence in row["sequences"]:
        tokens = sequence["tokens"]
        trained = sum(token["trained"] for token in tokens)
        counts = f"{sequence['name']}, {row['set']}: {len(tokens)} tokens, {trained} trained{pack}"
        console.print(Text.assemble((f"── {place} ", "bold"), counts))
        console.print(_coloured(tokens) if console.is_terminal else _marked(tokens))
        if sequence["cut"]:
            console.print(f"… and {sequence['cut']} tokens more")


def _coloured(tokens: list[dict[str, Any]]) -> Text:
    """Trained tokens green, one lighter than the next, so that each can be told from its neighbour."""
    text = Text()
    for number, token in enumerate(tokens):
        shade = ("black on green", "black on bright_green") if token["trained"] else ("", "dim")
        text.append(token["text"], style=shade[number % 2])
    return text


def _marked(tokens: list[dict[str, Any]]) -> Text:
    text, inside = Text(), False
    for token in tokens:
        if token["trained"] != inside:
            text.append(MARKS[inside])
            inside = token["trained"]
        text.append(token["text"])
    return text.append(MARKS[1]) if inside else text
