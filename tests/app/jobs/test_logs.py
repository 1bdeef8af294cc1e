"""A job's log is read from its end, or from any byte of it on."""

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import lifecycle, logs
from tests.factories import make_job, make_queued_job, take

PIECES = ("one\ntwo\n", "ü und €\n", "three\n")
WHOLE = "".join(PIECES).encode()


def log_of(session: Session, project: Project, *pieces: str) -> str:
    """The path of a job's log, which its trainer printed in pieces."""
    with session.begin():
        job_id = make_job(session, project).id
    for piece in pieces:
        with session.begin():
            logs.write(session, job_id, piece)
    return f"/v1/fine_tuning/jobs/{job_id}/logs"


def test_a_log_is_taken_up_at_any_byte(session: Session, project: Project, client: TestClient) -> None:
    path = log_of(session, project, *PIECES)
    log_of(session, project, "of another job\n")
    for place in range(len(WHOLE) + 1):
        rest = client.get(path, params={"after": place})
        assert (rest.content, rest.headers["x-log-start"]) == (WHOLE[place:], str(place))


def test_a_tail_says_where_it_begins(session: Session, project: Project, client: TestClient) -> None:
    path = log_of(session, project, *PIECES)
    for lines in (0, 1, 2, 3, 1000):
        tail = client.get(path, params={"tail": lines})
        assert int(tail.headers["x-log-start"]) + len(tail.content) == len(WHOLE)
        assert tail.content == WHOLE[int(tail.headers["x-log-start"]) :]
        assert len(tail.content.splitlines()) == min(lines, 4)
    nothing = client.get(log_of(session, project))
    assert (nothing.content, nothing.headers["x-log-start"]) == (b"", "0")


def test_a_place_behind_the_end_is_refused(session: Session, project: Project, client: TestClient) -> None:
    path = log_of(session, project, *PIECES)
    for place in (len(WHOLE) + 1, 10**30):
        refused = client.get(path, params={"after": place})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")
    assert client.get(path, params={"after": -1}).status_code == 400


def test_the_last_lines_are_an_attempts_own_and_few(session: Session, project: Project) -> None:
    with session.begin():
        job_id = make_queued_job(session, project).id
        first = take(session)
        assert logs.last_lines(session, first) == []
        logs.write(session, job_id, f"{logs.heading(first)}of the first\n")
        lifecycle.requeue(session, first)
        second = take(session)
        assert logs.last_lines(session, second) == []
        logs.write(session, job_id, f"{logs.heading(second)}one\n\n")
        logs.write(session, job_id, "two\n\n")
        assert logs.last_lines(session, second) == ["one", "", "two"]
        assert logs.last_lines(session, first)[0] == "of the first"
        for number in range(30):
            logs.write(session, job_id, f"{number}\n")
        assert logs.last_lines(session, second) == [str(number) for number in range(10, 30)]
        logs.write(session, job_id, "€" * 2 * logs.LAST_BYTES + "\n")
        (cut,) = logs.last_lines(session, second)
    assert set(cut) == {"€"}
    assert logs.LAST_BYTES - 3 < len(cut.encode()) <= logs.LAST_BYTES
