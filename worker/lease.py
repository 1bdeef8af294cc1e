"""Holds a claim: shows that its worker lives, and hears when the attempt should stop."""

import logging
import threading
import time
from enum import StrEnum
from typing import Self

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from app.db import conninfo, new_session
from app.errors import IllegalMove
from app.monitoring import lines
from app.settings import get_settings
from app.work import lifecycle
from app.work.lifecycle import Claim
from app.work.status import Desired
from worker.shutdown import shutting_down

log = logging.getLogger(__name__)


class Wish(StrEnum):
    """Why an attempt should stop."""

    CANCEL = "cancel"
    """The job's owner wishes it."""

    PAUSE = "pause"
    """Likewise; what was learnt is kept."""

    SHUTDOWN = "shutdown"
    """The worker is to end."""

    TAKEN_OVER = "taken_over"
    """The claim is lost, or the database was away for longer than anyone would wait."""


class Lease:
    """Prolonged from a thread of its own, so that one long step cannot let it lapse.

    The same thread listens for wishes, so that a cancel is heard at once and not with the next heartbeat. While the
    database is away the attempt goes on, for `database_patience`.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._settings = get_settings()
        self._wish: Wish | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=lines.following(self._keep), name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def wish(self) -> Wish | None:
        """Why the attempt should stop; None as long as it should not. A lost claim outranks everything."""
        if self._wish is not None:
            return self._wish
        return Wish.SHUTDOWN if shutting_down() else None

    def _keep(self) -> None:
        heard_at = time.monotonic()
        while not self._ended():
            try:
                with psycopg.connect(conninfo(), autocommit=True) as listener:
                    listener.execute(f'LISTEN "{lifecycle.channel(self._claim.work_id)}"')
                    while not self._ended():
                        self._beat()
                        heard_at = time.monotonic()
                        self._listen(listener)
            except (SQLAlchemyError, psycopg.Error) as error:
                log.warning("attempt %d at %s: no heartbeat: %s", self._claim.attempt, self._claim.subject, error)
                if time.monotonic() - heard_at > self._settings.database_patience.total_seconds():
                    self._wish = Wish.TAKEN_OVER
                self._over.wait(min(1.0, self._settings.heartbeat_interval.total_seconds()))

    def _ended(self) -> bool:
        return self._over.is_set() or self._wish is Wish.TAKEN_OVER

    def _beat(self) -> None:
        try:
            with new_session() as session, session.begin():
                desired = lifecycle.prolong(session, self._claim, lease=self._settings.lease_timeout)
        except IllegalMove:
            log.warning("attempt %d at %s was taken over", self._claim.attempt, self._claim.subject)
            self._wish = Wish.TAKEN_OVER
            return
        match desired:
            case Desired.CANCEL:
                self._wish = Wish.CANCEL
            case Desired.PAUSE:
                self._wish = Wish.PAUSE
            case Desired.RUN:  # a trainer that has been told to pause ends all the same, and its job is queued again
                pass

    def _listen(self, listener: psycopg.Connection[tuple[object, ...]]) -> None:
        """Wait for a wish until the next heartbeat is due; look up often enough to end with the attempt."""
        due = time.monotonic() + self._settings.heartbeat_interval.total_seconds()
        while not self._over.is_set() and (left := due - time.monotonic()) > 0:
            for _ in listener.notifies(timeout=min(left, 0.2), stop_after=1):
                return
