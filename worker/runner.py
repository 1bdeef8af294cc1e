"""A slot's turn: take work, attempt it, settle how it ended, and again until there is none."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from app import disks, queue
from app.auth import Project
from app.db import new_session
from app.disks import NoSpace
from app.jobs import lifecycle
from app.jobs import service as jobs
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.monitoring import lines
from app.registry import manifest as manifests
from app.settings import get_settings
from app.storage import Damaged, get_storage
from app.work.lifecycle import Claim, Who
from app.work.status import WorkKind
from worker import checkpoints, fetching, messages, preparing, resuming, room, workspace
from worker.given import OfNewerVersion, given
from worker.hanging import Hanging
from worker.lease import Lease
from worker.messages import AnyMessage
from worker.outcomes import Cancelled, Failed, Interrupted, Outcome, PassedOn, Paused, Published
from worker.patience import patient
from worker.phases import Phases
from worker.publication import CheckpointPublisher, Origin, publish
from worker.reporter import Reporter
from worker.settlement import settle
from worker.shutdown import shutting_down
from worker.standby import Trainers
from worker.supervisor import Ending, Finished, attend
from worker.trainer_log import LogShipper
from worker.uploading import CheckpointUploader
from worker.vacancy import Vacancy

log = logging.getLogger(__name__)


class Slot:
    """One place to train or to prepare: who it is to others, where its trainers come from, whether there is room."""

    def __init__(self, who: Who, trainers: Trainers, vacancy: Vacancy) -> None:
        self.who = who
        self.trainers = trainers
        self.vacancy = vacancy

    def run(self, queue_name: str) -> None:
        """Do the work of a queue, one attempt after another, until there is none or the worker shuts down."""
        while self.vacancy.awaited(queue_name) and (claim := self.take(queue_name)):
            with lines.about(**claim.named()), Lease(claim) as lease:
                phases = Phases(claim.kind)
                settle(claim, self.attempt(claim, lease, phases), phases)
            workspace.tidy(claim.subject, claim.kind)
        if not get_settings().standby and queue_name != queue.PREPARE:
            self._expect_work(queue_name)

    def _expect_work(self, queue_name: str) -> None:
        """Without standbys, have a trainer do its imports while files are being prepared for this queue."""
        if shutting_down():
            return
        with new_session() as session, session.begin():
            on_its_way = jobs.being_prepared(session, queue_name)
        if on_its_way:
            self.trainers.expect(WorkKind.TRAIN)
        else:
            self.trainers.close()

    def take(self, queue_name: str) -> Claim | None:
        """The first work of the queue, now ours for as long as the lease is kept."""
        free = disks.free(workspace.root())
        with new_session() as session, session.begin():
            return lifecycle.claim(session, queue_name, who=self.who, lease=get_settings().lease_timeout, free=free)

    def attempt(self, claim: Claim, lease: Lease, phases: Phases) -> Outcome:
        """Make one attempt, and turn whatever happens into how it ended."""
        log.info("attempt %d at %s of %s begins", claim.attempt, claim.kind, claim.subject)
        try:
            folder = workspace.opened(claim)
            match claim.kind:
                case WorkKind.PREPARE:
                    return self._prepare(claim, folder, lease)
                case WorkKind.REPORT:
                    return preparing.answer(claim, folder, lambda: self._attend(claim, folder, lease))
                case WorkKind.FETCH:
                    return fetching.fetch(claim, lease)
                case WorkKind.PREVIEW:
                    return preparing.show(claim, folder, lambda: self._attend(claim, folder, lease))
                case WorkKind.PLAN:
                    return preparing.count(claim, folder, lambda: self._attend(claim, folder, lease))
                case WorkKind.TRAIN:
                    return self._train(claim, folder, lease, phases)
                case _:
                    assert_never(claim.kind)
        except OfNewerVersion as error:
            return PassedOn(f"The worker is older than the job and does not understand all of it: {error}")
        except Damaged as error:
            return Failed("storage_damaged", f"What the job needs is not as it was stored: {error}.", retryable=True)
        except OSError as error:
            if disks.is_full(error, workspace.root()):
                return room.without(claim, error if isinstance(error, NoSpace) else NoSpace("scratch"))
            return Failed("storage_unavailable", f"The worker cannot write or read: {error}.", retryable=True)
        except Exception as error:
            log.exception("attempt %d at %s broke", claim.attempt, claim.subject)
            return Failed("internal_error", f"{type(error).__name__}: {error}", retryable=True)

    def _prepare(self, claim: Claim, folder: Path, lease: Lease) -> Outcome:
        with LogShipper(claim, folder / "trainer.log"), Reporter(claim) as reporter:
            return preparing.prepare(claim, folder, lambda: self._attend(claim, folder, lease, reporter.hear))

    def _train(self, claim: Claim, folder: Path, lease: Lease, phases: Phases) -> Outcome:
        storage = get_storage()
        if (whole := manifests.newest_whole(storage, claim.subject)) is not None:
            # An attempt before this one got as far as the commit point: nothing is trained twice.
            return Published(whole, storage.write_manifest(whole.key, manifests.as_document(whole)))
        start = given(claim)
        job, prepared = start.job, Prepared.model_validate(start.job.prepared)
        room.require_to_begin(folder, start, prepared, storage)
        if start.parent is not None:
            workspace.fill_parent(folder, start.parent, start.base, storage)
        workspace.fill_for_training(folder, job, prepared, storage)
        origin = Origin(claim, job, prepared, start.files["training_file"], _project_name(job))
        of_result = room.planned(start, "result")
        course = checkpoints.course_of(job.current_spec, prepared)
        with (
            LogShipper(claim, folder / "trainer.log"),
            Reporter(claim) as reporter,
            CheckpointPublisher(folder, storage, origin, warn=reporter.warn, reserve=of_result) as publisher,
            CheckpointUploader(
                claim,
                folder,
                storage,
                resuming.fetch_newest(claim, lease, folder / "checkpoints", course, storage, reporter.hear),
                warn=reporter.warn,
                reserve=of_result,
            ) as uploader,
        ):

            def hear(message: AnyMessage) -> None:
                phases.hear(message)
                reporter.hear(message)
                publisher.hear(message)
                uploader.hear(message)
                # On a CPU the next trainer starts only at the end: its imports would take the cores that train.
                if isinstance(message, messages.Metrics) and self.who.device["kind"] == "cuda":
                    self.trainers.stand_by(claim.kind)

            hanging = Hanging(get_settings().hang_timeout.total_seconds())
            try:
                ending = self._attend(claim, folder, lease, hear, hanging)
            except NoSpace:
                workspace.forget_torn(folder)
                uploader.finish(lease)
                raise
            publisher.is_last_chance = isinstance(ending, Finished | Cancelled | Failed)
            if isinstance(ending, Paused | Interrupted) or (isinstance(ending, Failed) and ending.retryable):
                uploader.finish(lease)
        if not isinstance(ending, Finished):
            return ending
        phases.enter("publishing")
        storage.require_room(workspace.size_of(folder / "result"))
        return Published(*publish(folder / "result", storage, origin))

    def _attend(
        self,
        claim: Claim,
        folder: Path,
        lease: Lease,
        hear: Callable[[AnyMessage], None] = lambda _: None,
        hanging: Hanging | None = None,
    ) -> Ending:
        """Run a trainer on the folder, and have the next one stand by."""
        child = self.trainers.start(claim.kind, folder)
        try:
            return attend(child, lease, hear, hanging)
        finally:
            child.close()
            self.trainers.stand_by(claim.kind)


@patient
def _project_name(job: Job) -> str:
    with new_session() as session, session.begin():
        return session.get_one(Project, job.project_id).name
