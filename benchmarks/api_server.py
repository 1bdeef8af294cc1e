"""The api as `finetuned api` runs it, and beside it a route that does nothing: `python -m benchmarks.api_server FD`."""

import socket
import sys

import uvicorn
from fastapi import FastAPI

from app.main import create_app


def main() -> None:
    """Serve on a socket that listens already."""
    api: FastAPI = create_app()

    @api.get("/noop")
    async def noop() -> dict[str, str]:
        return {"status": "ok"}

    config = uvicorn.Config(api, access_log=False, loop="uvloop", http="httptools", log_level="warning")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
