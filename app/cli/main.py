"""The `finetuned` command."""

import os
import sys

import typer

from app.cli import api, demo, keys, migrate, up

app = typer.Typer(
    help="Fine-tunes language models on your own GPUs, behind the OpenAI fine-tuning API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(demo.demo)
app.command()(api.api)
app.command("migrate")(migrate.upgrade)
app.add_typer(keys.app, name="keys")

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def worker(context: typer.Context) -> None:
    """Train, or with `--queue prepare` prepare: one slot of this machine, `--slot N`."""
    _become("worker.main", context.args)


@app.command(context_settings=_PASS_ON)
def sweeper(context: typer.Context) -> None:
    """Put right what crashes leave behind."""
    _become("worker.sweeper", context.args)


def _become(module: str, arguments: list[str]) -> None:
    """Run a module of the worker, which this package does not import."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  no shell is wanted
