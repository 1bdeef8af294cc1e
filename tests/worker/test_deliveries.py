"""Webhooks on their way: what a real server receives, and what becomes of what it does not take."""

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import openai
import pytest
import standardwebhooks
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.auth import Project, authenticate, create_key
from app.db import new_session
from app.jobs import lifecycle
from app.jobs.models import Job
from app.registry import service as registry
from app.settings import get_settings
from app.webhooks import delivery, sending, service
from app.webhooks.delivery import Delivered, Gone, NotDelivered
from app.webhooks.models import EVENT_TYPES, WebhookDelivery, WebhookEndpoint
from tests.conftest import SetSettings
from tests.factories import make_job, make_manifest, make_queued_job, take
from tests.receiver import Received, Receiver, receiving
from tests.running import wait_for
from worker.deliverer import Deliverer

LEASE = timedelta(seconds=60)
SECRET = "whsec_" + base64.b64encode(b"s" * 30).decode()
ERROR = {"code": "out_of_memory", "message": "Too large.", "param": None}


@pytest.fixture(autouse=True)
def allow_this_machine(set_settings: SetSettings) -> None:
    set_settings(webhook_allow="127.0.0.0/8", webhook_timeout=5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def endpoint(session: Session, project: Project, receiver: Receiver) -> WebhookEndpoint:
    with session.begin():
        return service.create(session, project, name="hook", url=receiver.url, event_types=list(EVENT_TYPES))


def announce(session: Session, project: Project, subject: str = "ftjob-a", event_type: str = EVENT_TYPES[0]) -> None:
    with session.begin():
        service.announce(session, project.id, event_type, subject=subject, at=datetime.now(UTC))


def deliver(session: Session) -> delivery.Outcome | None:
    """One try at what is due, as the deliverer makes it."""
    with session.begin():
        claimed = delivery.claim(session, lease=LEASE)
    if claimed is None:
        return None
    outcome = delivery.attempt(claimed)
    with session.begin():
        delivery.settle(session, claimed, outcome)
    return outcome


def make_due(session: Session) -> None:
    with session.begin():
        session.execute(update(WebhookDelivery).values(next_attempt_at=func.now()))


def row(session: Session) -> WebhookDelivery:
    with session.begin():
        return session.scalars(select(WebhookDelivery).execution_options(populate_existing=True)).one()


def unwrap(received: Received, secret: str) -> Any:
    """As a receiver does that uses the stock client, and one that uses the specification's own library."""
    event = openai.OpenAI(api_key="none").webhooks.unwrap(received.body, received.headers, secret=secret)
    assert standardwebhooks.Webhook(secret).verify(received.body, received.headers)["id"] == event.id
    return event


def test_a_delivery_is_verified_by_the_stock_client(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    announce(session, project)
    assert deliver(session) == Delivered(200)
    (received,) = receiver.received
    event = unwrap(received, endpoint.secret)
    assert (event.object, event.type, event.data.id) == ("event", "fine_tuning.job.succeeded", "ftjob-a")
    assert received.path == "/hook?of=tests"
    assert received.headers["webhook-id"] == event.id
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    settled = row(session)
    assert (settled.status, settled.attempts, settled.last_status_code) == ("delivered", 1, 200)
    assert deliver(session) is None


def test_what_was_altered_or_replayed_fails_verification(
    session: Session,
    project: Project,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announce(session, project)
    deliver(session)
    (received,) = receiver.received
    altered = received._replace(body=received.body.replace(b"succeeded", b"cancelled"))
    renamed = received._replace(headers=received.headers | {"webhook-id": "evt_other"})
    redated = received._replace(headers=received.headers | {"webhook-timestamp": str(int(time.time()) + 1)})
    for forged in (altered, renamed, redated):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(forged, endpoint.secret)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(endpoint.secret).verify(forged.body, forged.headers)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 301)
    with pytest.raises(openai.InvalidWebhookSignatureError, match="too old"):
        unwrap(received, endpoint.secret)


def test_a_refused_delivery_is_tried_again_under_the_same_id(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.answer = lambda number: 500 if number == 0 else 204
    announce(session, project)
    assert deliver(session) == NotDelivered("The endpoint answered 500.", 500)
    waiting = row(session)
    assert (waiting.status, waiting.attempts, waiting.last_status_code) == ("pending", 1, 500)
    assert waiting.next_attempt_at is not None
    wait = waiting.next_attempt_at - datetime.now(UTC)
    assert timedelta(seconds=3) < wait <= timedelta(seconds=5 * 1.25)
    assert deliver(session) is None

    make_due(session)
    assert deliver(session) == Delivered(204)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    unwrap(second, endpoint.secret)
    assert (row(session).status, row(session).attempts, row(session).last_error) == ("delivered", 2, None)


def test_a_delivery_is_given_up_after_the_last_wait_and_can_be_sent_again(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.answer = lambda number: 503 if number < 10 else 200
    announce(session, project)
    waits = []
    for _ in range(10):
        make_due_or_new(session)
        deliver(session)
        tried = row(session)
        waits.append((tried.next_attempt_at - datetime.now(UTC)) if tried.next_attempt_at else None)
    assert (tried.status, tried.attempts, tried.last_error) == ("failed", 10, "The endpoint answered 503.")
    for wait, delay in zip(waits, get_settings().webhook_retry_delays, strict=False):
        assert wait is not None
        assert delay - timedelta(seconds=2) < wait <= delay * 1.25
    assert waits[-1] is None

    with session.begin():
        service.send_again(session, project, endpoint.id, tried.id)
    assert deliver(session) == Delivered(200)
    assert len({received.headers["webhook-id"] for received in receiver.received}) == 1


def make_due_or_new(session: Session) -> None:
    if row(session).attempts:
        make_due(session)


@pytest.mark.parametrize(
    ("status", "retry_after", "wait"),
    [
        (429, "600", timedelta(minutes=10)),
        (503, " 600 ", timedelta(minutes=10)),
        (503, "in 10 minutes", timedelta(minutes=10)),  # as a date
        (500, "600", timedelta(seconds=5)),
        (429, "1", timedelta(seconds=5)),
        (429, "0", timedelta(seconds=5)),
        (429, "-1", timedelta(seconds=5)),
        (429, "soon", timedelta(seconds=5)),
        (429, "9" * 5000, timedelta(seconds=5)),
        (429, "Fri, 31 Dec 1999 23:59:59 GMT", timedelta(seconds=5)),
        (429, "999999999", timedelta(hours=24)),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", timedelta(hours=24)),
    ],
)
def test_an_endpoint_that_asks_for_time_is_given_it_within_the_tables_bounds(
    session: Session,
    project: Project,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    status: int,
    retry_after: str,
    wait: timedelta,
) -> None:
    if retry_after == "in 10 minutes":
        retry_after = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    receiver.answer, receiver.headers = lambda _: status, {"retry-after": retry_after}
    announce(session, project)
    assert isinstance(deliver(session), NotDelivered)
    waiting = row(session).next_attempt_at
    assert waiting is not None
    assert wait - timedelta(seconds=3) < waiting - datetime.now(UTC) <= wait * 1.25


def test_after_a_rotation_both_secrets_sign_for_a_day(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    old = endpoint.secret
    with session.begin():
        new = service.rotate_secret(session, project, endpoint.id, keep_old=True).secret
    announce(session, project)
    deliver(session)
    assert len(receiver.received[0].headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        unwrap(receiver.received[0], secret)

    with session.begin():
        session.execute(update(WebhookEndpoint).values(old_secret_until=func.now() - timedelta(seconds=1)))
    announce(session, project, "ftjob-b")
    deliver(session)
    unwrap(receiver.received[1], new)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(receiver.received[1], old)


def test_a_rotation_ends_the_old_secret_at_once_unless_asked_otherwise(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    old = endpoint.secret
    with session.begin():
        service.rotate_secret(session, project, endpoint.id, keep_old=True)
        new = service.rotate_secret(session, project, endpoint.id, keep_old=False).secret
    announce(session, project)
    deliver(session)
    unwrap(receiver.received[0], new)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(receiver.received[0], old)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint, status: int
) -> None:
    receiver.answer, receiver.headers = lambda _: status, {"location": "/elsewhere"}
    announce(session, project)
    outcome = deliver(session)
    assert outcome == NotDelivered(f"The endpoint answered {status}; redirects are not followed.", status)
    assert [received.path for received in receiver.received] == ["/hook?of=tests"]


def test_an_endpoint_that_is_gone_is_disabled_with_all_that_waits_for_it(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.answer = lambda _: 410
    announce(session, project)
    announce(session, project, "ftjob-b")
    assert deliver(session) == Gone()
    assert deliver(session) is None
    announce(session, project, "ftjob-c")
    with session.begin():
        session.refresh(endpoint)
        assert endpoint.disabled_at is not None
        statuses = session.execute(select(WebhookDelivery.status, WebhookDelivery.last_status_code)).all()
    assert sorted(statuses, key=str) == [("failed", 410), ("failed", None)]


def test_a_farewell_from_an_address_of_before_disables_nothing(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    announce(session, project)
    with session.begin():
        claimed = delivery.claim(session, lease=LEASE)
        assert claimed is not None
        service.change(session, project, endpoint.id, name=None, url=f"{receiver.url}&new", event_types=None)
    with session.begin():
        delivery.settle(session, claimed, Gone())
    assert (row(session).status, endpoint.disabled_at) == ("pending", None)
    make_due(session)
    assert deliver(session) == Delivered(200)
    assert receiver.received[0].path == "/hook?of=tests&new"


def test_a_delivery_that_a_killed_deliverer_had_claimed_is_taken_again(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    announce(session, project)
    with session.begin():
        dead = delivery.claim(session, lease=timedelta(seconds=0.5))
    assert dead is not None
    assert deliver(session) is None
    assert wait_for(lambda: deliver(session), 5) == Delivered(200)
    assert row(session).attempts == 2

    with session.begin():  # it was not dead but slow, and what it says comes too late
        delivery.settle(session, dead, NotDelivered("too late"))
    assert (row(session).status, row(session).last_error) == ("delivered", None)


def test_two_deliverers_deliver_each_event_once_and_several_at_a_time(
    session: Session, project: Project, receiver: Receiver
) -> None:
    many = threading.Barrier(3)
    met: list[int] = []

    def meet() -> None:
        try:
            met.append(many.wait(4))
        except threading.BrokenBarrierError:
            return

    receiver.before = meet
    with session.begin():
        for name in range(6):
            service.create(session, project, name=str(name), url=receiver.url, event_types=list(EVENT_TYPES))
    announce(session, project)
    announce(session, project, "ftjob-b")
    with deliverers(2):
        wait_for(lambda: statuses(session) == {"delivered"}, 20)
        time.sleep(0.2)
    assert len(receiver.received) == 12
    assert len(met) >= 3
    with session.begin():
        assert set(session.scalars(select(WebhookDelivery.attempts))) == {1}


def test_the_sweepers_process_delivers_within_seconds_and_ends_when_told(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    with subprocess.Popen([sys.executable, "-m", "worker.sweeper"]) as process:
        try:
            announce(session, project)
            wait_for(lambda: receiver.received, 30)
            announce(session, project, "ftjob-b")
            begun = time.monotonic()
            wait_for(lambda: len(receiver.received) == 2, 10)
            assert time.monotonic() - begun < 3
            wait_for(lambda: statuses(session) == {"delivered"}, 10)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_an_endpoint_that_lets_wait_keeps_nobody_else_waiting(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    end = threading.Event()
    receiver.before = lambda: end.wait(10)
    with receiving() as quick:
        for number in range(10):
            announce(session, project, f"ftjob-{number}")
        with session.begin():
            service.create(session, project, name="quick", url=quick.url, event_types=list(EVENT_TYPES))
        with session.begin():
            session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id).values(event_types=[]))
        announce(session, project, "ftjob-quick")
        with deliverers(1, at_once=3):
            wait_for(lambda: quick.received, 5)
            assert len(receiver.received) <= delivery.PER_ENDPOINT
            end.set()


def test_a_project_whose_endpoints_let_wait_keeps_no_other_project_waiting(
    session: Session, project: Project, receiver: Receiver
) -> None:
    end = threading.Event()
    receiver.before = lambda: end.wait(10)
    with session.begin():
        for name in range(8):
            service.create(session, project, name=str(name), url=receiver.url, event_types=list(EVENT_TYPES))
        stranger = authenticate(session, create_key(session, "stranger", "tests"))
    announce(session, project)
    announce(session, project, "ftjob-b")
    with receiving() as quick, deliverers(1, at_once=8):
        wait_for(lambda: len(receiver.received) == delivery.PER_PROJECT, 5)
        with session.begin():
            service.create(session, stranger, name="quick", url=quick.url, event_types=list(EVENT_TYPES))
        announce(session, stranger, "ftjob-quick")
        wait_for(lambda: quick.received, 5)
        assert len(receiver.received) == delivery.PER_PROJECT
        end.set()
        wait_for(lambda: statuses(session) == {"delivered"}, 10)


def test_a_thread_that_cannot_start_ends_no_delivering(
    session: Session,
    project: Project,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def start_but_the_first(thread: threading.Thread) -> None:
        if thread.name.startswith("whd_") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_the_first)
    announce(session, project, "ftjob-a")
    with deliverers(1, at_once=1):
        wait_for(lambda: refused, 5)
        announce(session, project, "ftjob-b")
        wait_for(lambda: statuses(session) == {"pending", "delivered"}, 5)
        with session.begin():  # as time does with its lease
            session.execute(update(WebhookDelivery).values(locked_until=None).where(WebhookDelivery.id == refused[0]))
        wait_for(lambda: statuses(session) == {"delivered"}, 5)
    assert [json.loads(received.body)["data"]["id"] for received in receiver.received] == ["ftjob-b", "ftjob-a"]


def trickle(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nx-endless: ")
    while True:
        line.sendall(b"a")
        time.sleep(0.05)


def say_nothing(line: socket.socket) -> None:
    while line.recv(65536):
        pass


def send_without_end(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        line.sendall(b"a" * 65536)


def speak_no_http(line: socket.socket) -> None:
    line.recv(65536)
    line.sendall(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize("answer", [trickle, say_nothing])
def test_an_answer_that_does_not_come_is_given_up_in_time(
    answer: Callable[[socket.socket], None], set_settings: SetSettings
) -> None:
    set_settings(webhook_timeout=0.5)
    begun = time.monotonic()
    with answering(answer) as port, pytest.raises(sending.NotSent, match=r"not answered within 0\.5 s"):
        sending.send(f"http://127.0.0.1:{port}/", "evt_x", "{}", [SECRET])
    assert time.monotonic() - begun < 2


def test_an_answer_without_end_is_read_to_its_first_bytes() -> None:
    begun = time.monotonic()
    with answering(send_without_end) as port:
        assert sending.send(f"http://127.0.0.1:{port}/", "evt_x", "{}", [SECRET]).status_code == 200
    assert time.monotonic() - begun < 2


def test_what_is_no_http_is_no_answer() -> None:
    with answering(speak_no_http) as port, pytest.raises(sending.NotSent, match="could not be reached"):
        sending.send(f"http://127.0.0.1:{port}/", "evt_x", "{}", [SECRET])


def test_an_address_that_nobody_listens_at_is_passed_over_for_the_next(
    receiver: Receiver, set_settings: SetSettings
) -> None:
    set_settings(webhook_allow="127.0.0.0/8, ::1/128")
    url = f"http://two.invalid:{receiver.port}/"
    assert sending.send(url, "evt_x", "{}", [SECRET], ask=lambda _host, _port: ["::1", "127.0.0.1"]).status_code == 200


def test_a_certificate_must_be_of_the_name_in_the_address(tmp_path: Path) -> None:
    """Although the connection goes to an IP address: TLS asks for the name, and checks it."""
    theirs, ours = certificate(tmp_path, "hooks.invalid")
    asked: list[str | None] = []

    def answer(line: socket.socket) -> None:
        theirs.set_servername_callback(lambda _line, name, _context: asked.append(name))
        with suppress(ssl.SSLError), theirs.wrap_socket(line, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            secure.recv(1)

    def send(name: str, tls: ssl.SSLContext | None) -> int:
        with answering(answer) as port:
            url = f"https://{name}:{port}/hook"
            return sending.send(
                url, "evt_x", "{}", [SECRET], ask=lambda _host, _port: ["127.0.0.1"], tls=tls
            ).status_code

    assert send("hooks.invalid", ours) == 202
    with pytest.raises(sending.NotSent, match=r"not valid for 'other\.invalid'"):
        send("other.invalid", ours)
    with pytest.raises(sending.NotSent, match="self-signed"):
        send("hooks.invalid", None)
    assert asked == ["hooks.invalid", "other.invalid", "hooks.invalid"]


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's side and a client's of a certificate that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(pem)
    return theirs, ssl.create_default_context(cadata=signed.public_bytes(serialization.Encoding.PEM).decode())


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection, on a port that the kernel chooses."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line, suppress(OSError):
                answer(line)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)
        assert not thread.is_alive()


def test_a_name_that_leads_elsewhere_by_now_is_not_connected_to(receiver: Receiver, set_settings: SetSettings) -> None:
    """The name is asked for once; what was checked is what is connected to, with the name in `Host`."""
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    url = f"http://rebinding.invalid:{receiver.port}/hook"
    assert sending.send(url, "evt_x", "{}", [SECRET], ask=rebinding).status_code == 200
    assert asked == [("rebinding.invalid", receiver.port)]
    assert receiver.received[0].headers["host"] == f"rebinding.invalid:{receiver.port}"


def test_an_address_is_checked_again_at_each_delivery(
    session: Session, project: Project, receiver: Receiver, endpoint: WebhookEndpoint, set_settings: SetSettings
) -> None:
    announce(session, project)
    set_settings(webhook_allow="")
    outcome = deliver(session)
    assert isinstance(outcome, NotDelivered)
    assert "FINETUNED_WEBHOOK_ALLOW" in outcome.error
    assert (receiver.received, row(session).status) == ([], "pending")


def test_no_proxy_of_the_environment_is_asked(
    session: Session,
    project: Project,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    announce(session, project)
    assert deliver(session) == Delivered(200)


def end_well(session: Session, project: Project) -> Job:
    job = make_queued_job(session, project)
    claim = take(session)
    result = registry.register(session, make_manifest(session, claim), manifest_sha256="6" * 64)
    lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])
    return job


def end_badly(session: Session, project: Project) -> Job:
    job = make_queued_job(session, project)
    lifecycle.fail(session, take(session), ERROR)
    return job


def end_by_worker(session: Session, project: Project) -> Job:
    job = make_queued_job(session, project)
    lifecycle.stop(session, take(session))
    return job


def end_by_owner(session: Session, project: Project) -> Job:
    return lifecycle.cancel(session, make_job(session, project))


@pytest.mark.parametrize(
    ("end", "event_type"),
    [
        (end_well, "fine_tuning.job.succeeded"),
        (end_badly, "fine_tuning.job.failed"),
        (end_by_worker, "fine_tuning.job.cancelled"),
        (end_by_owner, "fine_tuning.job.cancelled"),
    ],
)
def test_a_job_ends_together_with_its_deliveries_or_not_at_all(
    session: Session,
    project: Project,
    endpoint: WebhookEndpoint,
    end: Callable[[Session, Project], Job],
    event_type: str,
) -> None:
    with session.begin() as undone:
        end(session, project)
        undone.rollback()
    with new_session() as other, other.begin():
        assert other.scalar(select(func.count()).select_from(WebhookDelivery)) == 0

    with session.begin():
        job = end(session, project)
        session.refresh(job)
    written = row(session)
    event = json.loads(written.body)
    assert job.finished_at is not None
    assert event == {
        "id": written.event_id,
        "object": "event",
        "created_at": int(job.finished_at.timestamp()),
        "type": event_type,
        "data": {"id": job.id},
    }


def test_an_event_goes_to_the_endpoints_that_want_it(session: Session, project: Project) -> None:
    with session.begin():
        for name, event_types in (("both", EVENT_TYPES[:2]), ("one", EVENT_TYPES[:1]), ("other", EVENT_TYPES[2:])):
            service.create(session, project, name=name, url="http://127.0.0.1/", event_types=list(event_types))
    announce(session, project)
    with session.begin():
        told = select(WebhookEndpoint.name).join(WebhookDelivery).order_by(WebhookEndpoint.name)
        assert session.scalars(told).all() == ["both", "one"]
        assert len(set(session.scalars(select(WebhookDelivery.event_id)))) == 1


def test_a_job_ends_although_its_endpoint_is_deleted_meanwhile(
    session: Session, project: Project, endpoint: WebhookEndpoint
) -> None:
    ended: list[str] = []

    def finish() -> None:
        with new_session() as other, other.begin():
            ended.append(end_by_owner(other, project).status)

    with session.begin():
        service.remove(session, project, endpoint.id)
        finishing = threading.Thread(target=finish)
        finishing.start()
        time.sleep(0.3)
        assert not ended
    finishing.join()
    assert ended == ["cancelled"]


def statuses(session: Session) -> set[str]:
    with session.begin():
        return set(session.scalars(select(WebhookDelivery.status)))


class deliverers:  # noqa: N801  reads as the block it opens
    """Some, until the block ends."""

    def __init__(self, number: int, *, at_once: int = 8) -> None:
        self._all = [Deliverer(poll=0.05, at_once=at_once) for _ in range(number)]

    def __enter__(self) -> None:
        for one in self._all:
            one.start()

    def __exit__(self, *_: object) -> None:
        for one in self._all:
            one.close(timedelta(seconds=10))
