"""The command against servers that go away, proxies that answer for them, and specs that YAML reads otherwise."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.cli import client as client_module
from app.cli import jobs, models
from app.cli.client import LOST_TRIES, Client, CommandFailed, Lost, Refused
from app.cli.submit import read_spec
from app.cli.watch import Lines, events

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """Gives these answers one after the other, then hangs up; its address, and the paths that were asked for."""
    left, asked = list(answers), list[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            if left:
                left.pop(0)(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing: it would stand among what the tests print."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}", asked
        finally:
            httpd.shutdown()
            thread.join()


def whole(body: str, status: int = 200, media_type: str = "application/json", **headers: str) -> Answer:
    return _answer(body.encode(), status, media_type, len(body.encode()), headers)


def cut_off(body: bytes, media_type: str = "text/plain", **headers: str) -> Answer:
    """As a connection that breaks: more was announced than comes."""
    return _answer(body, 200, media_type, len(body) + 100, headers)


def to_the_end(body: bytes) -> Answer:
    """An answer whose length nobody said."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def _answer(body: bytes, status: int, media_type: str, announced: int, headers: dict[str, str]) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        # the client must not ask again on a connection that this server is about to close
        handler.send_response(status)
        said = {"content-type": media_type, "content-length": str(announced), "connection": "close"}
        for name, value in (said | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


BAD_GATEWAY = whole("<html>502 Bad Gateway</html>", 502, "text/html")


@contextmanager
def of(url: str) -> Iterator[Client]:
    """The command's client, closed at the end, as it is with the process of a command."""
    client = Client(url, "key")
    with client.http:
        yield client


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LONGEST_WAIT", 0.01)


def sent(number: int) -> str:
    event = {"created_at": 0, "level": "info", "message": f"sentence {number}", "data": None}
    return f"id: ftevent-{number}\ndata: {json.dumps(event)}\n\n"


def test_a_proxy_that_answers_for_a_server_that_restarts_is_waited_out() -> None:
    end = 'event: end\ndata: {"status": "succeeded"}\n\n'
    with (
        server(
            whole("{}", 429),
            BAD_GATEWAY,
            cut_off(sent(1).encode(), "text/event-stream"),
            BAD_GATEWAY,
            whole(sent(2) + end, media_type="text/event-stream"),
        ) as (url, asked),
        of(url) as client,
    ):
        heard = [event["message"] for event in events(client, "ftjob-1", Lines())]
    assert heard == ["sentence 1", "sentence 2"]
    assert len(asked) == 5


def test_a_followed_log_goes_on_where_it_was_cut() -> None:
    log = "zero\nthree €uros\nfour\n".encode()
    middle = log.index("€".encode()) + 1
    job = {"finished_at": None}
    with (
        server(
            cut_off(log[5:middle], x_log_start="5"),
            BAD_GATEWAY,
            cut_off(log[middle:-5], x_log_start=str(middle)),
            _answer(b"", 200, "text/plain", 0, {"x-log-start": str(len(log) - 5)}),
            whole(json.dumps(job)),  # the server has only shut down
            _answer(log[-5:], 200, "text/plain", 5, {"x-log-start": str(len(log) - 5)}),
            whole(json.dumps(job | {"finished_at": 1})),
        ) as (url, asked),
        of(url) as client,
    ):
        followed = b"".join(part.content for part in jobs.followed(client, "ftjob-1", 2))
    assert followed == log[5:]
    assert [path.partition("?")[2] for path in asked if "/logs" in path] == [
        "follow=true&tail=2",
        *[f"follow=true&after={place}" for place in (middle, middle, len(log) - 5, len(log) - 5)],
    ]


def test_a_log_is_followed_through_any_number_of_silences_that_a_proxy_cuts() -> None:
    silences = [cut_off(b"", x_log_start="0")] * (LOST_TRIES + 5)
    end = [whole("a\n", media_type="text/plain", x_log_start="0"), whole(json.dumps({"finished_at": 1}))]
    with server(*silences, *end) as (url, _), of(url) as client:
        assert b"".join(part.content for part in jobs.followed(client, "ftjob-1", 2)) == b"a\n"


def test_a_page_in_place_of_a_log_is_told_in_words() -> None:
    with server(whole("<html></html>")) as (url, _), of(url) as client, pytest.raises(CommandFailed, match="no log"):
        list(jobs.followed(client, "ftjob-1", 2))


def test_a_download_that_broke_off_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an announced length, the end of a connection looks like the end of the answer."""
    files = tmp_path / "ft-tiny"
    files.mkdir()
    (files / "a").write_bytes(b"x" * 2000)
    whole_tar = io.BytesIO()
    with tarfile.open(fileobj=whole_tar, mode="w") as tar:
        tar.add(files, "ft-tiny")
    listed = {"name": "a", "bytes": 2000, "sha256": hashlib.sha256(b"x" * 2000).hexdigest()}
    entry = {"id": "ft:tiny", "bytes": 2000, "files": [listed, listed | {"name": "b"}]}
    for kept, message in ((1500, "broke off"), (None, "is not what the registry has")):
        with server(whole(json.dumps(entry)), to_the_end(whole_tar.getvalue()[:kept])) as (url, _), of(url) as client:
            monkeypatch.setattr(models, "connected", lambda client=client: client)
            with pytest.raises(CommandFailed, match=message):
                models.download("ft:tiny", tmp_path / "got")


def test_a_server_that_is_away_or_breaks_off_is_told_in_words() -> None:
    with server(cut_off(b"x" * 600)) as (url, _):
        for said in ("broke off its answer", "does not answer"):  # the second time there is none at all
            with of(url) as client, pytest.raises(Lost, match=said), client.stream("/") as response:
                response.read()


@pytest.mark.parametrize(
    "answer", [whole("<html>hello</html>", media_type="text/html"), whole("[]", 404), whole('{"error": "no"}', 404)]
)
def test_whoever_is_no_finetuned_server_is_told_in_words(answer: Answer) -> None:
    with (
        server(answer) as (url, _),
        of(url) as client,
        pytest.raises(CommandFailed, match=r"answered (404|what no finetuned server does)"),
    ):
        client.get("/v1/models")


def test_a_refusal_has_the_servers_words() -> None:
    error = {"message": "No such job.", "type": "x", "param": "id", "code": None}
    refusal = whole(json.dumps({"error": error}), 404)
    with server(refusal) as (url, _), of(url) as client, pytest.raises(Refused, match="No such") as caught:
        client.get("/v1/models")
    assert (caught.value.status_code, caught.value.param) == (404, "id")


def test_a_spec_is_read_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "rate: 2e-4\nbig: 1E3\nmore: [1.5e3, .5e3, 010, 0x10, 1:30, 1_000, 12e03]\n"
        "metadata:\n  day: 2026-11-25\n  answer: no\n  fine: yes\nwatch: true\nepochs: 3\n"
    )
    _, body = read_spec(path)
    assert body == {
        "rate": 2e-4,
        "big": 1000.0,
        "more": [1500.0, 500.0, 10, 16, "1:30", "1_000", 12000.0],
        "metadata": {"day": "2026-11-25", "answer": "no", "fine": "yes"},
        "watch": True,
        "epochs": 3,
    }


@pytest.mark.parametrize("value", [".nan", "-.inf", "!!binary aGk=", "!!timestamp 2026-11-25"])
def test_what_cannot_be_sent_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: tiny\ntuning:\n  type: lora\n  lora_dropout: {value}\n")
    with pytest.raises(CommandFailed, match=r"job\.yaml, line 4: tuning\.lora_dropout: .* cannot be sent"):
        read_spec(path)


@pytest.mark.parametrize("value", ["!!float x", "!!int x", "!!bool maybe", "&x [*x]", '"\\uD800"'])
def test_what_is_no_value_is_told_in_words(tmp_path: Path, value: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {value}\n")
    with pytest.raises(CommandFailed, match="is not YAML"):
        read_spec(path)
