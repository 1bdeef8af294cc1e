"""An answer that is lost between the server and the stock client, which asks again by itself."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import openai
import pytest

from tests import tiny
from tests.running import Service

CREATE = b"POST /v1/fine_tuning/jobs "


class LossyProxy:
    """Passes requests on, one a connection, and hangs up instead of passing on the first answers to a create."""

    def __init__(self, upstream: tuple[str, int], lost: int) -> None:
        self._upstream = upstream
        self._left_to_lose = lost
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.creates: list[bytes] = []

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed: the test is over
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server:
            request = client.recv(1 << 20)
            while b"\r\n\r\n" not in request:
                request += client.recv(1 << 20)
            head, _, body = request.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
            while len(body) < length:
                body += client.recv(1 << 20)
            kept = [line for line in lines if not line.lower().startswith(b"connection:")]
            server.sendall(b"\r\n".join([*kept, b"Connection: close", b"", body]))
            answer = b""
            while piece := server.recv(1 << 20):
                answer += piece
            if head.startswith(CREATE):
                self.creates.append(head)
                if len(self.creates) <= self._left_to_lose:
                    return
            client.sendall(answer)


@contextmanager
def lossy(service: Service, lost: int) -> Iterator[tuple[openai.OpenAI, LossyProxy]]:
    """The stock client behind a proxy that loses so many answers."""
    host, port = service.url.removeprefix("http://").split(":")
    proxy = LossyProxy((host, int(port)), lost)
    with closing(proxy.listener):
        threading.Thread(target=proxy.serve, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.listener.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=address, api_key=service.key) as client:
            yield client, proxy


@pytest.mark.fault(33)
def test_a_create_whose_answers_are_lost_makes_one_job(service: Service) -> None:
    """The client sends no key; it says that it repeats itself, and that is enough."""
    rows = service.upload(tiny.chat_rows(8))
    mark = {"lost": "answer"}
    with lossy(service, lost=2) as (client, proxy):
        job = client.fine_tuning.jobs.create(model="tiny", training_file=rows, metadata=mark, seed=7)
    assert len(proxy.creates) == 3
    assert not any(b"idempotency-key" in head.lower() for head in proxy.creates)
    made = list(service.client().fine_tuning.jobs.list(metadata=mark))
    assert [one.id for one in made] == [job.id]
