"""The doorbell: the Celery app, its one task, and `ring`.

A message says *there is work in this queue* and nothing else; the work itself is a row in Postgres. Lost, doubled or
late rings do no harm, so ringing waits for no broker: it hands to a thread with a bounded queue, and drops what does
not fit.
"""

import logging
import queue
import threading
from functools import lru_cache

from celery import Celery
from kombu.exceptions import OperationalError

from app.settings import get_settings

log = logging.getLogger(__name__)

RUN = "finetuned.run"
"""The one task: do the work of a queue."""
PREPARE = "prepare"
"""The queue of work that needs no training slot; every other queue is a worker class."""
CPU = "cpu"
"""The class of workers without a GPU."""


@lru_cache
def get_celery() -> Celery:
    """The Celery app, with what was learned of brokers: early acknowledgement, short socket timeouts, no results."""
    celery = Celery("finetuned", broker=get_settings().broker_url, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        result_backend=None,
        task_acks_late=False,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_publish_retry=False,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=60.0,  # Celery's 4 s kill a pool child that starts on a busy machine
        worker_send_task_events=False,
    )
    return celery


class Doorbell:
    """Rings from a thread of its own, so that no request ever waits for the broker."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[str, threading.Event]] = queue.Queue(maxsize=1000)
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self.heard = {"rung": 0, "failed": 0, "dropped": 0}
        """Rings by what came of them."""

    def ring(self, queue_name: str, *, give: float = 0.0) -> None:
        """Say that a queue has work; may be lost.

        `give`: seconds that the caller leaves it at most before it goes on: a thread that computes at once has the
        interpreter, and the ring waits for it.
        """
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._ring_forever, name="doorbell", daemon=True)
                self._thread.start()
        left = threading.Event()
        try:
            self._waiting.put_nowait((queue_name, left))
        except queue.Full:
            self.heard["dropped"] += 1
            log.warning("the doorbell is jammed; the sweeper will ring for queue %s", queue_name)
        else:
            left.wait(give)

    def flush(self, seconds: float) -> None:
        """Wait until all rings have left, or so long: for processes that end right after ringing."""
        done = threading.Thread(target=self._waiting.join, daemon=True)
        done.start()
        done.join(seconds)

    def _ring_forever(self) -> None:
        while True:
            queue_name, left = self._waiting.get()
            try:
                get_celery().send_task(RUN, args=[queue_name], queue=queue_name, retry=False)
                self.heard["rung"] += 1
            except (OperationalError, OSError) as error:
                self.heard["failed"] += 1
                log.warning("the broker does not answer (%s); the sweeper will ring for %s", error, queue_name)
            except Exception:
                self.heard["failed"] += 1
                log.exception("could not ring for queue %s", queue_name)
            finally:
                left.set()
                self._waiting.task_done()


_doorbell = Doorbell()
ring = _doorbell.ring
flush = _doorbell.flush


def rings() -> dict[str, int]:
    """How many of this process's rings have left, have failed, or were dropped because too many waited."""
    return _doorbell.heard


def broker_answers() -> bool:
    """Whether the broker answers a ping within its short socket timeout."""
    try:
        with get_celery().connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            connection.default_channel.client.ping()  # type: ignore[attr-defined]  # the Redis transport has it
    except Exception:  # noqa: BLE001  whatever it is, the broker does not answer
        return False
    return True
