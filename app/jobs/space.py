"""Want of space: what a job is paused for, which of those jobs can go on, and who is warned before."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Float, cast, func, select
from sqlalchemy.orm import Session

from app import disks
from app.disks import Disk
from app.jobs.models import Job
from app.jobs.status import JobStatus
from app.planning.guardrails import Guardrail
from app.settings import get_settings
from app.work.models import Work, Worker
from app.work.service import HEARD_WITHIN
from app.work.status import WorkKind, WorkStatus

NO_SPACE = "no_space"
"""What such a job is `paused_by`."""
AT_ONCE = 100
"""Jobs that go on in one round of the sweeper's."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What an attempt found no room for. `host`: of its worker."""

    disk: Disk
    host: str
    free_bytes: int
    needed_bytes: int

    def __str__(self) -> str:
        """As a sentence without its end."""
        where = "the storage" if self.disk == "storage" else f"the disk of the worker on {self.host}"
        free, needed = disks.as_text(self.free_bytes), disks.as_text(self.needed_bytes)
        return f"There is no room: {where} has {free} free, and {needed} are needed"


def kept(session: Session, lack: Lack) -> dict[str, Any]:
    """As the job's row has it; `since`: Unix seconds, by the database's clock."""
    return asdict(lack) | {"since": session.scalar(select(cast(func.extract("epoch", func.now()), Float)))}


def lack_of(job: Job) -> Lack | None:
    """What a job that is paused for want of space waits for."""
    if job.paused_by != NO_SPACE or job.lack is None:
        return None
    return Lack(**{name: value for name, value in job.lack.items() if name != "since"})


def fitting(session: Session) -> list[Job]:
    """Jobs paused for want of space that has come since, as a worker of their class reports that is up.

    What was reported before a job was paused counts for nothing. Their work is locked: nobody else moves them.
    """
    free = func.jsonb_extract_path_text(Worker.usage, Job.lack["disk"].astext.concat("_free_bytes"))
    has_room = (
        select(Worker.id)
        .where(
            Worker.queue == Job.queue,
            Worker.heard_at > func.now() - HEARD_WITHIN,
            func.extract("epoch", Worker.heard_at) > cast(Job.lack["since"].astext, Float),
            cast(free, Float) >= cast(Job.lack["needed_bytes"].astext, Float),
        )
        .exists()
    )
    waiting = (
        select(Job)
        .join(Work, Work.subject == Job.id)
        .where(Work.kind == WorkKind.TRAIN, Work.status == WorkStatus.PAUSED)
        .where(Job.status == JobStatus.PAUSED, Job.paused_by == NO_SPACE, has_room)
        .order_by(Job.seq)
        .limit(AT_ONCE)
        .with_for_update(of=Work, skip_locked=True)
    )
    return list(session.scalars(waiting))


def forecast(session: Session, queue: str, *, worker: int, storage: int) -> list[Guardrail]:
    """Warnings where no worker of a class that is up has room just now for what a job would take; bytes.

    Nothing where none says what it has. A bucket is not asked.
    """
    free = [cast(Worker.usage[f"{disk}_free_bytes"].astext, Float) for disk in ("scratch", "storage")]
    alive = (Worker.queue == queue, Worker.heard_at > func.now() - HEARD_WITHIN)
    roomiest, stored = session.execute(select(*map(func.max, free)).where(*alive)).one()
    found = []
    if roomiest is not None and roomiest < worker:
        found.append(
            Guardrail(
                "no_room_on_worker",
                f"Checkpoints and result take up to {disks.as_text(worker)} of a worker's disk, and the roomiest of"
                f" '{queue}' has {disks.as_text(int(roomiest))} free. The job is paused where it runs out.",
                suggestion="Make room, or tune with an adapter, whose checkpoints are small.",
            )
        )
    if stored is not None and stored < storage and get_settings().storage.startswith("file://"):
        found.append(
            Guardrail(
                "no_room_in_storage",
                f"Result and checkpoints take up to {disks.as_text(storage)} of the storage, which has"
                f" {disks.as_text(int(stored))} free. The job is paused where there is none for the result.",
                suggestion="Make room, or save fewer checkpoints (save_steps).",
            )
        )
    return found
