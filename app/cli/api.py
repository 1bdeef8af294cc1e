"""`finetuned api`: the HTTP server. `python -m app.cli.api`"""

import ipaddress
import socket
import sys
from typing import Annotated

import typer
import uvicorn

from app.cli import keys


def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    fd: Annotated[int | None, typer.Option(help="Descriptor of a socket that listens already.")] = None,
) -> None:
    """Answer requests."""
    listener = socket.socket(fileno=fd) if fd is not None else socket.create_server((host, port), backlog=1024)
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback and not keys.any_there():
        print(
            f"Refusing to listen on {address}: there is no API key yet. Make one with 'finetuned keys create NAME'.",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    config = uvicorn.Config(
        "app.main:create_app", factory=True, access_log=False, loop="uvloop", http="httptools", log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    typer.run(api)
