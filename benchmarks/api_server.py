"""The api as `finetuned api` runs it, and beside it a route that does nothing: `python -m benchmarks.api_server FD`."""

import socket
import sys

from app.cli.api import serve
from app.main import create_app


def main() -> None:
    """Serve on a socket that listens already."""
    api = create_app()

    @api.get("/noop")
    async def noop() -> dict[str, str]:
        return {"status": "ok"}

    serve(api, socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
