"""A client that keeps a few jobs going, and asks again until it is answered; and one that asks all the time."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import httpx
import openai

from tests import tiny
from tests.chaos.plan import Submission, Wish
from tests.running import Service

log = logging.getLogger(__name__)

AT_ONCE = 6
"""Jobs that have not ended: enough for all slots, whatever they wait for."""
FINAL = ("succeeded", "failed", "cancelled")
BUSY = (openai.APIConnectionError, openai.InternalServerError)
"""What a client asks again after; all else is an answer."""

T = TypeVar("T")


class Stream:
    """Submits until told to end. What was wished and answered stays to be looked at."""

    def __init__(self, service: Service, plan: Iterator[Submission]) -> None:
        self._client = service.client().with_options(timeout=10)
        self._plan = plan
        self._files = {
            "supervised": service.upload(tiny.chat_rows(40), "chaos.jsonl"),
            "dpo": service.upload(tiny.preference_rows(40), "chaos-pairs.jsonl"),
        }
        self._over = threading.Event()
        self._submitter = threading.Thread(target=self._submit_until_over, name="stream")
        self._owners: list[threading.Thread] = []
        self.answers: dict[str, str | None] = {}
        """By its key, the id that a submission was answered with."""
        self.cancelled: set[str] = set()
        """Ids of jobs of which it was wished, and heard."""
        self.paused: set[str] = set()
        self.refusals: list[str] = []

    def __enter__(self) -> Self:
        self._submitter.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Submits no more; all owners have their say."""
        self._over.set()
        for thread in (self._submitter, *self._owners):
            thread.join()

    def unfinished(self) -> list[str]:
        """Ids of the submitted jobs that have not ended."""
        jobs = self._asked(lambda: list(self._client.fine_tuning.jobs.list(limit=100)))
        return [job.id for job in jobs if job.status not in FINAL]

    def _submit_until_over(self) -> None:
        while not self._over.is_set():
            if len(self.unfinished()) < AT_ONCE:
                self._submit(next(self._plan))
            self._over.wait(1)

    def _submit(self, submission: Submission) -> None:
        body = submission.body(self._files[submission.method])
        headers = {"Idempotency-Key": submission.key}
        self.answers[submission.key] = None
        try:
            job = self._asked(lambda: self._client.fine_tuning.jobs.create(**body, extra_headers=headers))
        except openai.APIStatusError as refused:
            self.refusals.append(f"the submission {submission.key} was refused: {refused}")
            return
        self.answers[submission.key] = job.id
        if submission.wish is not Wish.NONE:
            owner = threading.Thread(target=self._wish, args=(job.id, submission), name=f"owner of {job.id}")
            self._owners.append(owner)
            owner.start()

    def _wish(self, job_id: str, submission: Submission) -> None:
        """A job that has ended meanwhile cannot be paused nor cancelled: a 400 that says so is no refusal."""
        jobs = self._client.fine_tuning.jobs
        self._over.wait(submission.after)
        try:
            if submission.wish is Wish.CANCEL:
                self.cancelled.add(job_id)  # before it is answered: it may be heard, and the answer lost
                self._asked(lambda: jobs.cancel(job_id))
                return
            self._asked(lambda: jobs.pause(job_id))
            self.paused.add(job_id)
            self._over.wait(submission.after)
            self._asked(lambda: jobs.resume(job_id))
        except openai.BadRequestError as refused:
            if "has succeeded already" not in str(refused):
                self.refusals.append(f"{job_id} could not be {submission.wish}d: {refused}")

    @staticmethod
    def _asked(question: Callable[[], T]) -> T:
        while True:
            try:
                return question()
            except BUSY as error:
                log.info("asking again: %r", error)
                time.sleep(0.5)


class Prober:
    """Asks the api for its health four times a second, and remembers when it was answered."""

    def __init__(self, service: Service) -> None:
        self._url = f"{service.url}/healthz"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_until_over, name="prober")
        self.answered_at: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask_until_over(self) -> None:
        with httpx.Client(trust_env=False, timeout=2) as client:
            while not self._over.wait(0.25):
                self._ask(client)

    def _ask(self, client: httpx.Client) -> Any:
        try:
            if client.get(self._url).status_code == 200:
                self.answered_at.append(time.monotonic())
        except httpx.TransportError:
            pass
