"""`finetuned worker | sweeper`: modules of the worker, which this package does not import."""

import os
import sys

import typer


def worker(context: typer.Context) -> None:
    """Train, or with `--queue prepare` prepare: one slot of this machine, `--slot N`."""
    _become("worker.main", context.args)


def sweeper(context: typer.Context) -> None:
    """Put right what crashes leave behind."""
    _become("worker.sweeper", context.args)


def _become(module: str, arguments: list[str]) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  no shell is wanted
