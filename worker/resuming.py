"""What an attempt goes on from: the newest checkpoint that verifies, on this worker's disk or out of the storage."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.db import new_session
from app.errors import IllegalMove
from app.jobs import resume_states
from app.jobs.models import ResumeState
from app.storage import Damaged, Storage
from app.work.lifecycle import Claim
from worker import checkpoints, messages
from worker.checkpoints import MANIFEST, Checkpoint, Course
from worker.lease import Lease
from worker.messages import AnyMessage
from worker.patience import patient

log = logging.getLogger(__name__)


class OtherCourse(Exception):
    """A checkpoint is of another base, other rows or other settings."""


class NotWanted(Exception):
    """The attempt is to stop before it has begun."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the storage has of a job's checkpoints."""

    steps: set[int] = field(default_factory=set)
    suspect: set[str] = field(default_factory=set)
    """Digests of blobs of which one at least is not what it says."""


def fetch_newest(
    claim: Claim,
    lease: Lease,
    folder: Path,
    course: Course,
    storage: Storage,
    hear: Callable[[AnyMessage], None],
) -> Stored:
    """Have in `folder` the newest checkpoint that verifies, and the best beside it: fetched where they are not there.

    What is torn, altered or of another course is told of and never used; the one before is taken. Raises `OSError`
    where the storage is away: an attempt that began without it would do steps twice.
    """
    states = _states(claim)
    fetching = _Fetching(claim, lease, folder, course, storage, hear, Stored({state.step for state in states}))
    try:
        newest = next((checkpoint for state in states if (checkpoint := fetching.at_least(state))), None)
        if newest is not None and newest.best is not None:
            fetching.best(newest.best, states)
    except NotWanted:
        log.info("attempt %d at %s is to stop before it has its checkpoint", claim.attempt, claim.subject)
    except IllegalMove:
        log.info("attempt %d at %s was taken over before it had its checkpoint", claim.attempt, claim.subject)
    return fetching.stored


@patient
def _states(claim: Claim) -> list[ResumeState]:
    """Newest first."""
    with new_session() as session, session.begin():
        return resume_states.stored(session, claim.subject)


@patient
def _strike(claim: Claim, state: ResumeState) -> None:
    with new_session() as session, session.begin():
        resume_states.strike(session, claim, state)


def fetch(
    storage: Storage,
    key: str,
    sha256: str,
    folder: Path,
    course: Course,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """A stored checkpoint, by its manifest, verified on arrival.

    Raises `Damaged`; `OtherCourse` before any of its files has come; what `meanwhile` raises, see `Storage.fetch`.
    """
    manifest = storage.read_manifest(key, sha256=sha256)
    if manifest is None:
        raise Damaged(f"manifest {key} is gone")
    step = int(manifest["step"])
    target = checkpoints.path_of(folder, step)
    checkpoint = checkpoints.described(target, manifest)
    if differing := checkpoints.differences(checkpoint.course, course):
        raise OtherCourse(checkpoints.other_course(step, differing))
    arriving = target.with_name(f"{checkpoints.ARRIVING}{target.name}")
    shutil.rmtree(arriving, ignore_errors=True)
    for name, description in manifest["files"].items():
        file = arriving / name
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(description["sha256"], file, meanwhile=meanwhile)
    (arriving / MANIFEST).write_text(json.dumps(manifest))
    arriving.replace(target)
    return checkpoint


@dataclass(frozen=True, slots=True)
class _Fetching:
    claim: Claim
    lease: Lease
    folder: Path
    course: Course
    storage: Storage
    hear: Callable[[AnyMessage], None]
    stored: Stored

    def at_least(self, state: ResumeState) -> Checkpoint | None:
        """That of the folder at a state's step or a later one, else the state's; None where neither can be used."""
        here = checkpoints.newest_verified(self.folder, self.course, self._warn, least=state.step)
        return here or self._fetched(state)

    def best(self, step: int, states: list[ResumeState]) -> None:
        """Where it is not in the folder. Where it is nowhere, whoever publishes at the end says so."""
        if not (checkpoints.path_of(self.folder, step) / MANIFEST).exists():
            any(self._fetched(state) for state in states if state.step == step)

    def _fetched(self, state: ResumeState) -> Checkpoint | None:
        self._require_wanted()
        digest = str(state.manifest_sha256)
        try:
            checkpoint = fetch(
                self.storage, state.manifest_key, digest, self.folder, self.course, meanwhile=self._require_wanted
            )
        except OtherCourse as refused:
            self._warn(str(refused))
        except Damaged as damaged:
            self._warn(f"The stored checkpoint at step {state.step} is not as it was, and is not used: {damaged}")
            self.stored.suspect.update(file["sha256"] for file in state.files)
        else:
            megabytes = state.bytes / 1e6
            told = f"The checkpoint at step {state.step} was fetched from the storage ({megabytes:.1f} MB)"
            self.hear(messages.Notice("info", told))
            return checkpoint
        self.stored.steps.discard(state.step)
        _strike(self.claim, state)
        return None

    def _warn(self, told: str) -> None:
        self.hear(messages.Notice("warn", told))

    def _require_wanted(self) -> None:
        if self.lease.wish is not None:
            raise NotWanted
