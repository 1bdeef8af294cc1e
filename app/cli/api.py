"""`finetuned api`: the HTTP server. `python -m app.cli.api`"""

import gc
import ipaddress
import socket
import sys
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from app.cli import keys
from app.cli.embedded import CannotStart
from app.main import create_app
from app.monitoring import lines

STOP_WITHIN = 5
"""Seconds that requests may go on after TERM; a stream of events would do so for ever."""
SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the others from running. With Python's 5 ms the event loop waits so long for each of
the routes' threads, and creating a job takes half as long again (`benchmarks/api.py`)."""
GC_THRESHOLDS = (10_000, 20, 50)
"""With Python's own (700, 10, 10) the collector walks through all that was imported and all that a thousand followers
hold, 280 ms at a time, while nobody is answered."""


def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    fd: Annotated[int | None, typer.Option(help="Descriptor of a socket that listens already.")] = None,
) -> None:
    """Answer requests."""
    lines.configure()
    try:
        listener = socket.socket(fileno=fd) if fd is not None else listen(host, port)
        _refuse_without_key(listener.getsockname()[0])
    except CannotStart as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    serve(create_app(), listener)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests on a socket that listens already, until TERM."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,  # its lines go where ours go
        loop="uvloop",
        http="httptools",
        log_level="warning",
        timeout_graceful_shutdown=STOP_WITHIN,
    )
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a name or an address of either kind. Raises `CannotStart`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise CannotStart(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error


def _refuse_without_key(address: str) -> None:
    """Whoever finds a public server without keys may not be the first to make one. Raises `CannotStart`."""
    if ipaddress.ip_address(address).is_loopback:
        return
    try:
        found = keys.any_there()
    except SQLAlchemyError as error:
        raise CannotStart(
            f"Refusing to listen on {address}: whether there is an API key cannot be told. Does the database answer,"
            f" and has 'finetuned migrate' been run? {str(error).splitlines()[0]}"
        ) from error
    if not found:
        raise CannotStart(
            f"Refusing to listen on {address}: there is no API key yet. Make one with 'finetuned keys create NAME'."
        )


if __name__ == "__main__":
    typer.run(api)
