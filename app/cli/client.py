"""The command's way to a server: which one, with which key, patience with a lost connection, refusals in words."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx
import typer

from app.settings import get_settings

TRIES = 6
LOST_TRIES = 60
"""Tries at a server that went away, some eight minutes: a deployment, or a laptop that slept."""
LONGEST_WAIT = 8.0
MENDED_BY_A_RETRY = {408, 409, 429, 500, 502, 503, 504}

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


class CommandFailed(Exception):
    """The command cannot do what it was told; the message says why and what to do."""


class Refused(CommandFailed):
    """The server's refusal, in its own words."""

    def __init__(self, status_code: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message")))
        self.status_code = status_code
        self.param: str | None = error.get("param")
        self.will_pass = status_code in MENDED_BY_A_RETRY or status_code >= 500


class Lost(CommandFailed):
    """The connection broke off, or there never was one."""

    def __init__(self, url: str, error: httpx.TransportError, *, begun: bool = False) -> None:
        reason = str(error) or type(error).__name__
        never = f"{url} does not answer: {reason}. Is the server running?"
        super().__init__(f"{url} broke off its answer: {reason}." if begun else never)


class Client:
    """A server of finetuned, over HTTP like any client's."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        host = urlsplit(self.url).hostname or ""
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(60, connect=5),
            trust_env=host not in ("127.0.0.1", "::1", "localhost"),  # no proxy stands between a machine and itself
        )

    def get(self, path: str, **query: Any) -> Any:
        """What the server answers. Raises `CommandFailed`."""
        return _read(self._tried(lambda: self.http.get(path, params=_given(query))))

    def post(self, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
        """Likewise; what is posted here can be posted twice without harm. Raises `CommandFailed`."""
        return _read(self._tried(lambda: self.http.post(path, json=body, headers=headers)))

    def upload(self, path: Path, purpose: str) -> Any:
        """Send a file, from the disk. Raises `CommandFailed`."""

        def send() -> httpx.Response:
            with path.open("rb") as file:
                return self.http.post(
                    "/v1/files",
                    data={"purpose": purpose},
                    files={"file": (path.name, file)},
                    timeout=httpx.Timeout(None, connect=5),
                )

        return _read(self._tried(send))

    @contextmanager
    def stream(self, path: str, **query: Any) -> Iterator[httpx.Response]:
        """A long answer, as it comes; silence is borne for a minute. Raises `CommandFailed`, `Lost` among it."""
        begun = False
        try:
            with self.http.stream("GET", path, params=_given(query)) as response:
                accepted(response)
                begun = True
                yield response
        except httpx.TransportError as error:
            raise Lost(self.url, error, begun=begun) from error

    def _tried(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer, after some patience with a server that restarts or is busy."""
        for wait in waits(TRIES):
            try:
                response = send()
            except httpx.TransportError as error:
                if wait is None:
                    raise Lost(self.url, error) from error
            else:
                if response.status_code not in MENDED_BY_A_RETRY or wait is None:
                    return accepted(response)
                wait = _asked_for(response) or wait
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def waits(tries: int) -> Iterator[float | None]:
    """Seconds to wait after each try that failed, twice as long each time; None after the last."""
    for number in range(tries - 1):
        yield min(LONGEST_WAIT, 0.5 * 2**number)
    yield None


def connected() -> Client:
    """The server that `FINETUNED_URL` and `FINETUNED_API_KEY` name, else the `finetuned up` of this home.

    Raises `CommandFailed` where there is neither.
    """
    home = get_settings().home
    url = os.environ.get("FINETUNED_URL") or _written(home / "url")
    key = os.environ.get("FINETUNED_API_KEY") or _written(home / "api-key")
    if not url:
        raise CommandFailed(
            f"No server: start one with 'finetuned up' (none runs on {home}), or set FINETUNED_URL and"
            " FINETUNED_API_KEY."
        )
    if not key:
        raise CommandFailed(f"No API key for {url}: set FINETUNED_API_KEY ('finetuned keys create NAME' makes one).")
    return Client(url, key)


def _written(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def accepted(response: httpx.Response) -> httpx.Response:
    """An answer that is none of a refusal. Raises `Refused`, in a proxy's words too, which are no JSON."""
    if response.is_success:
        return response
    response.read()
    try:
        error = response.json()["error"]
        raise Refused(response.status_code, {"message": error["message"], "param": error["param"]})
    except (ValueError, KeyError, TypeError):
        said = f"{response.request.url} answered {response.status_code}: {response.text[:300]}"
        raise Refused(response.status_code, {"message": said}) from None


def _read(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise CommandFailed(
            f"{response.request.url} answered what no finetuned server does: {response.text[:100]!r}. Does"
            " FINETUNED_URL name one?"
        ) from error


def _asked_for(response: httpx.Response) -> float | None:
    try:
        return min(60.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value not in (None, [])}
