"""Carries checkpoints into the storage while training goes on, so that any worker can go on from them."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from app.db import new_session
from app.disks import NoSpace
from app.errors import IllegalMove
from app.failpoints import failpoint
from app.jobs import resume_states
from app.monitoring import lines
from app.settings import get_settings
from app.storage import CHUNK, Blob, Storage
from app.work.lifecycle import Claim
from worker import checkpoints, messages
from worker.checkpoints import MANIFEST
from worker.lease import Lease, Wish
from worker.messages import AnyMessage
from worker.resuming import Stored
from worker.shutdown import began_at, shutting_down

log = logging.getLogger(__name__)

AGAIN = 10.0
"""Seconds until what failed is tried again; a second at the end, which is waited for."""


class GivenUp(Exception):
    """Nobody will go on from it."""


class Spoilt(Exception):
    """A file is not as it was saved."""


class CheckpointUploader:
    """Stores the newest checkpoint of WORKDIR/checkpoints, and the best one, from a thread of its own.

    One at a time: where they are saved faster, those in between are left out. Never a reason to stop.
    """

    def __init__(
        self,
        claim: Claim,
        folder: Path,
        storage: Storage,
        stored: Stored,
        *,
        warn: Callable[[str], None] = lambda _: None,
        reserve: int = 0,
    ) -> None:
        """`warn` takes a sentence for the job's events. `reserve`: bytes of the storage that are left to the result."""
        self._claim = claim
        self._folder = folder
        self._storage = storage
        self._stored = stored
        self._spoilt: set[int] = set()
        """Steps that nobody can go on from."""
        self._warn = warn
        self._reserve = reserve
        self._full = False
        """Whether the storage had no room for the last."""
        self._news = threading.Event()
        self._news.set()  # an earlier attempt may have left one
        self._over = False
        self._again = AGAIN
        self._thread = threading.Thread(target=lines.following(self._upload_until_over), name="uploads", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is on its way is given up. Nobody waits for a file that a bucket is taking just now: the row that was
        announced for it takes it along when it goes.
        """
        self.give_up()
        self._thread.join(timeout=1)

    def hear(self, message: AnyMessage) -> None:
        """Never waits."""
        if isinstance(message, messages.Checkpoint):
            self._news.set()
        elif isinstance(message, messages.Phase) and message.phase == "saving":
            self.give_up()  # all steps are done

    def give_up(self) -> None:
        """Nothing more is stored. Never waits."""
        self._over = True
        self._news.set()

    def finish(self, lease: Lease) -> None:
        """Wait until the newest is stored: for `checkpoint_grace`, and no longer than a worker may take to shut down.

        Not for a job that is cancelled meanwhile, or taken over; nor for room.
        """
        settings = get_settings()
        deadline = time.monotonic() + settings.checkpoint_grace.total_seconds()
        self._again = 1.0
        self._news.set()
        while self._thread.is_alive() and (path := self._next()) is not None:
            if shutting_down():
                deadline = min(deadline, began_at() + settings.shutdown_grace.total_seconds())
            if self._full or lease.wish in (Wish.CANCEL, Wish.TAKEN_OVER):
                return
            if time.monotonic() > deadline:
                self._warn(f"There was no time to store {path.name}: other workers go on from the one before it")
                return
            time.sleep(0.05)

    def _upload_until_over(self) -> None:
        left = False
        while not self._over:
            self._news.wait(self._again if left else None)
            self._news.clear()
            try:
                left = self._upload_waiting()
            except (GivenUp, IllegalMove):
                return  # if the job is not ours any more, the lease says so to whoever stops the trainer

    def _upload_waiting(self) -> bool:
        """Whether one is left that time may mend. Raises `GivenUp`, or `IllegalMove` once the claim is lost."""
        while not self._over and (path := self._next()) is not None:
            try:
                if (linked := self._linked(path)) is not None:
                    self._upload(linked)
            except (GivenUp, IllegalMove):
                raise
            except Spoilt as error:
                log.warning("%s: %s is not stored: %s", self._claim.subject, path.name, error)
                self._spoilt.add(int(path.name.rsplit("-", 1)[-1]))
            except NoSpace:
                if not self._full:
                    self._warn(f"The storage has no room for {path.name}: only this worker can go on from it for now")
                self._full = True
                return True
            except Exception as error:  # noqa: BLE001  of the storage's client anything may come
                log.warning(
                    "attempt %d at %s: %s not stored yet: %s",
                    self._claim.attempt,
                    self._claim.subject,
                    path.name,
                    error,
                )
                return True
        return False

    def _next(self) -> Path | None:
        """What the storage lacks: the newest, else the best that it knows of."""
        folder = self._folder / "checkpoints"
        newest = checkpoints.newest_committed(folder)
        if newest is None:
            return None
        try:
            known = checkpoints.described(newest, checkpoints.read_manifest(newest))
        except FileNotFoundError:
            return self._next()  # it went in this moment, because there is a newer one
        done = self._stored.steps | self._spoilt
        if known.step not in done:
            return newest
        if known.best is None or known.best in done:
            return None
        best = checkpoints.path_of(folder, known.best)
        return best if (best / MANIFEST).exists() else None

    def _linked(self, path: Path) -> Path | None:
        """The same files, which stay when the trainer removes the checkpoint; None where it has done so."""
        folder = self._folder / "uploading"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            shutil.copytree(path, folder / path.name, copy_function=os.link)
        except (shutil.Error, FileNotFoundError):
            if path.exists():
                raise
            return None
        return folder / path.name

    def _upload(self, path: Path) -> None:
        """Announced, then blob by blob, then the manifest, then entered: nothing is stored that no row knows of."""
        manifest = checkpoints.read_manifest(path)
        checkpoint = checkpoints.described(path, manifest)
        blobs = {name: Blob(one["sha256"], one["size"]) for name, one in manifest["files"].items()}
        contents = [{"name": name, **blob._asdict()} for name, blob in blobs.items()]
        began = time.monotonic()
        missing = sum(blob.bytes for blob in blobs.values() if not self._storage.has(*blob))
        self._storage.require_room(missing + self._reserve)
        with new_session() as session, session.begin():
            state = resume_states.announce(session, self._claim, checkpoint.step, contents)
        for name, blob in blobs.items():
            self._put(path / name, blob)
        failpoint("before_resume_manifest")
        manifest_sha256 = self._storage.write_manifest(state.manifest_key, manifest)
        failpoint("after_resume_manifest")
        with new_session() as session, session.begin():
            resume_states.enter(session, self._claim, state, manifest_sha256, best=checkpoint.best)
        self._stored.steps.add(checkpoint.step)
        self._full = False
        shutil.rmtree(path.parent, ignore_errors=True)
        took = time.monotonic() - began
        log.info("%s: %s stored, %d bytes in %.1f s", self._claim.subject, path.name, state.bytes, took)

    def _put(self, path: Path, blob: Blob) -> None:
        suspect = blob.sha256 in self._stored.suspect
        if self._storage.has(*blob) and not suspect:
            return
        with path.open("rb") as source, self._storage.incoming() as incoming:
            while chunk := source.read(CHUNK):
                if self._over:
                    raise GivenUp
                incoming.write(chunk)
            if incoming.sha256 != blob.sha256:
                raise Spoilt(f"{path.name} is not as it was saved")
            self._storage.commit(incoming, anew=suspect)
            self._stored.suspect.discard(blob.sha256)
