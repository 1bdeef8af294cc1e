"""Delivers webhooks out of Postgres, several at once, beside the sweeping.

Any number of processes may: a lease on the row keeps a delivery from being tried by two of them at once, and gives it
to another when one is killed.
"""

import logging
import threading
import time
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from app.db import new_session
from app.monitoring import lines
from app.settings import get_settings
from app.webhooks import delivery
from app.webhooks.delivery import Claimed, NotDelivered, Outcome

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Tries of all projects; `delivery.PER_PROJECT` is a quarter, so that it takes several to let all others wait."""
SETTLING = timedelta(seconds=30)
"""What a lease has beyond the time of a request: for a slow name server before it and the database after it."""


class Deliverer:
    """A thread that claims, and one for each try. They end with the process, whose leases then lapse."""

    def __init__(self, *, poll: float = 1.0, at_once: int = AT_ONCE) -> None:
        self._poll = poll
        self._at_once = at_once
        self._free = threading.Semaphore(at_once)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._claim_all, name="deliverer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, patience: timedelta) -> None:
        """Claim nothing more, and let the tries that go on end, within a time."""
        end = time.monotonic() + patience.total_seconds()
        self._over.set()
        self._thread.join(patience.total_seconds())
        for _ in range(self._at_once):
            self._free.acquire(timeout=max(0.0, end - time.monotonic()))

    def _claim_all(self) -> None:
        while not self._over.is_set():
            if not self._free.acquire(timeout=self._poll):
                continue
            claimed = _claim()
            if claimed is None or not self._begin(claimed):
                self._free.release()
                self._over.wait(self._poll)

    def _begin(self, claimed: Claimed) -> bool:
        """Where no thread is to be had the lease lapses, and the delivery is claimed again."""
        thread = threading.Thread(target=self._deliver, args=(claimed,), name=claimed.delivery_id, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            log.warning("webhook %s to %s has no thread to go: %s", claimed.delivery_id, claimed.endpoint_id, error)
            return False
        return True

    def _deliver(self, claimed: Claimed) -> None:
        try:
            with lines.about(webhook=claimed.delivery_id, endpoint=claimed.endpoint_id, attempt=claimed.attempt):
                _settle(claimed, _attempt(claimed))
        finally:
            self._free.release()


def _claim() -> Claimed | None:
    try:
        with new_session() as session, session.begin():
            return delivery.claim(session, lease=get_settings().webhook_timeout + SETTLING)
    except SQLAlchemyError as error:
        log.warning("no webhook could be claimed: %s", error)
    except Exception:
        log.exception("no webhook could be claimed")
    return None


def _attempt(claimed: Claimed) -> Outcome:
    try:
        return delivery.attempt(claimed)
    except Exception:
        log.exception("webhook %s to %s failed in the service itself", claimed.delivery_id, claimed.endpoint_id)
        return NotDelivered("The service itself failed at this delivery; its log says how.")


def _settle(claimed: Claimed, outcome: Outcome) -> None:
    if isinstance(outcome, NotDelivered):
        log.info(
            "webhook %s to %s was not delivered by attempt %d: %s",
            claimed.delivery_id,
            claimed.endpoint_id,
            claimed.attempt,
            outcome.error,
        )
    try:
        with new_session() as session, session.begin():
            delivery.settle(session, claimed, outcome)
    except SQLAlchemyError as error:
        # Its lease lapses, and it is sent again: at least once is what is promised.
        log.warning("what came of webhook %s could not be entered: %s", claimed.delivery_id, error)
