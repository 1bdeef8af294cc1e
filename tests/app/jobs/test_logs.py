"""A job's log is read from its end, or from any byte of it on."""

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import logs
from tests.factories import make_job

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
