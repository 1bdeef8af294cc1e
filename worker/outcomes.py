"""How an attempt can end: one class each, so that the type checker sees that none is forgotten."""

from dataclasses import dataclass
from typing import Any

from app.failures import Code
from app.files.judging import Judgement
from app.jobs.prepared import Prepared
from app.jobs.space import Lack
from app.planning.dry_runs import DryRun
from app.registry.manifest import Manifest
from app.storage import Blob


@dataclass(frozen=True, slots=True)
class FilesPrepared:
    """The rows are checked and stored as the trainer will see them."""

    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file was copied from its source, and judged."""

    blob: Blob
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Answered:
    """The report that was asked for is that of a set, which is entered."""

    set_key: str


@dataclass(frozen=True, slots=True)
class Shown:
    """Prepared rows, token by token."""

    rows: list[Any]


@dataclass(frozen=True, slots=True)
class Counted:
    """A dry run found what a step takes."""

    found: DryRun


@dataclass(frozen=True, slots=True)
class Published:
    """The result lies in storage, its manifest written."""

    manifest: Manifest
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Its owner wished it to end, and the trainer has ended."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Its owner wished to set it aside; a checkpoint was saved where there was time for it."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker is shutting down; a checkpoint was saved where there was time for it."""


@dataclass(frozen=True, slots=True)
class NoSpace:
    """There is no room for what a job is to write; what it had begun to write is gone."""

    lack: Lack


@dataclass(frozen=True, slots=True)
class PassedOn:
    """This worker is older than the job, and leaves it to a newer one."""

    reason: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The lease is lost: another attempt holds the job, and this one may write nothing."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt cannot go on; `retryable` says whether another could."""

    code: Code
    message: str
    param: str | None = None
    retryable: bool = False
    suggestion: str | None = None
    """Better than the code's."""

    def as_error(self) -> dict[str, str | None]:
        """As it is kept."""
        return {"code": self.code, "message": self.message, "param": self.param, "suggestion": self.suggestion}


Outcome = (
    FilesPrepared
    | Arrived
    | Answered
    | Shown
    | Counted
    | Published
    | Cancelled
    | Paused
    | Interrupted
    | NoSpace
    | PassedOn
    | TakenOver
    | Failed
)
