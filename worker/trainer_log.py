"""Carries what a trainer prints into the job's log, twice a second, line by line."""

import logging
import threading
import time
from pathlib import Path
from typing import BinaryIO, Self

from sqlalchemy.exc import SQLAlchemyError

from app.db import new_session
from app.errors import IllegalMove
from app.jobs import logs
from app.monitoring import lines
from app.settings import get_settings
from app.work import lifecycle as work
from app.work.lifecycle import Claim

log = logging.getLogger(__name__)

INTERVAL = 0.5
PIECE = 64 * 1024
"""Bytes read and written at once; a line that is longer is broken."""
MOST = 1024 * 1024
"""Bytes of an attempt that go into the database; the file on the worker has them all."""
END = 8 * 1024
"""Bytes that follow where there were more: what a trainer prints last says why it ended."""


class LogShipper:
    """Follows WORKDIR/trainer.log from where an attempt finds it. Never a reason to stop."""

    def __init__(self, claim: Claim, path: Path) -> None:
        self._claim = claim
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0  # an attempt takes over the file of the one before
        self._shipped = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=lines.following(self._ship_until_over), name="log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Everything printed is written before the attempt is settled, which waits as long for the database."""
        self._over.set()
        self._thread.join()

    def _ship_until_over(self) -> None:
        while not self._over.wait(INTERVAL if self._shipped < MOST else None):
            self._ship_waiting(last=False)
        patience = time.monotonic() + get_settings().database_patience.total_seconds()
        while not self._ship_waiting(last=True) and time.monotonic() < patience:
            time.sleep(1)  # the database says nothing when it comes back

    def _ship_waiting(self, *, last: bool) -> bool:
        """Whether nothing is left that can be shipped."""
        try:
            while self._shipped < MOST and self._ship(last=last):
                pass
            if last and self._shipped >= MOST:
                self._at = max(self._at, self._path.stat().st_size - END)
                self._ship(last=True)
        except IllegalMove:
            return True  # not ours any more: the lease says so to whoever stops the trainer
        except SQLAlchemyError as error:
            log.warning("attempt %d at %s: log not shipped yet: %s", self._claim.attempt, self._claim.subject, error)
            return False
        except OSError as error:
            log.warning("attempt %d at %s: log not shipped: %s", self._claim.attempt, self._claim.subject, error)
        return True

    def _ship(self, *, last: bool) -> bool:
        """Write the next piece; returns whether there may be more."""
        try:
            with self._path.open("rb") as file:
                piece = self._piece(file, last=last)
        except FileNotFoundError:
            return False
        if not piece:
            return False
        text = as_shown(piece.decode(errors="replace"))
        if not self._shipped:
            text = logs.heading(self._claim) + text
        if self._shipped < MOST <= self._shipped + len(piece):
            text += f"== the rest is in {self._path.name} on the worker; its end will be here too ==\n"
        with new_session() as session, session.begin():
            work.require_held(session, self._claim)
            logs.write(session, self._claim.subject, text)
        self._at += len(piece)
        self._shipped += len(piece)
        return True

    def _piece(self, file: BinaryIO, *, last: bool) -> bytes:
        """Whole lines, but for one that is longer than a piece, and what stands at the end."""
        file.seek(self._at)
        piece = file.read(PIECE)
        if len(piece) == PIECE or not last:
            end = piece.rfind(b"\n") + 1
            return piece[:end] if end or len(piece) < PIECE else piece
        return piece


def as_shown(text: str) -> str:
    """As a terminal would leave it: of a line that was written over (a progress bar) what it said last; no NUL."""
    lines = text.replace("\0", "").removesuffix("\n").split("\n")
    return "".join(line.rstrip("\r").rsplit("\r", 1)[-1] + "\n" for line in lines)
