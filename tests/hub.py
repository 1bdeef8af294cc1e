"""A model hub of one model, for the library that asks the real one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def serving(folder: Path, name: str) -> Iterator[str]:
    """Give the files of a folder as the model `org/name`, at one commit. Yields its address."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            files = {file.name: file for file in sorted(folder.iterdir())}
            wanted = path.removeprefix(f"/{name}/resolve/main/").removeprefix(f"/{name}/resolve/{COMMIT}/")
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in files]
                self._give(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), body=body)
            elif path == f"/api/models/{name}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": file, "size": path.stat().st_size, "oid": _digest(path.read_bytes())}
                    for file, path in files.items()
                ]
                self._give(json.dumps(tree).encode(), body=body)
            elif wanted in files:
                self._give(files[wanted].read_bytes(), body=body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound" if name not in path else "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _give(self, content: bytes, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{_digest(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
