"""The `finetuned` command."""

import os
import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from app.cli.client import CommandFailed

COMMANDS = {
    "up": "up:up",
    "demo": "demo:demo",
    "init": "init:init",
    "recommend": "recommend:recommend",
    "plan": "plan:plan",
    "submit": "submit:submit",
    "jobs": "jobs:jobs",
    "watch": "watch:watch",
    "logs": "jobs:logs",
    "cancel": "jobs:cancel",
    "pause": "jobs:pause",
    "resume": "jobs:resume",
    "files": "files:app",
    "models": "models:models",
    "download": "models:download",
    "verify": "models:verify",
    "keys": "keys:app",
    "api": "api:api",
    "worker": "parts:worker",
    "sweeper": "parts:sweeper",
    "migrate": "migrate:upgrade",
}
"""Where each lies. Only the one that is called is imported: a server's libraries take longer than most commands do."""
PASS_ON = {"worker", "sweeper"}
"""Their options are for a module of the worker to read."""


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command with some of its subcommands."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

    @app.callback()
    def finetuned() -> None:
        """Fine-tunes language models on your own GPUs, behind the OpenAI fine-tuning API."""

    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(import_module(f"app.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        elif name in PASS_ON:
            options = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
            app.command(name, context_settings=options)(found)
        else:
            app.command(name)(found)
    return app


def main() -> None:
    """The command, its failures as a sentence: exit code 0, 1 (failed) or 2 (used wrongly)."""
    called = sys.argv[1:2]
    completing = any(name.endswith("_COMPLETE") for name in os.environ)
    try:
        build(called if not completing and called and called[0] in COMMANDS else COMMANDS)()
    except CommandFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
