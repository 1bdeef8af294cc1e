"""A slot's turn: take work, attempt it, settle how it ended, and again until there is none."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import assert_never

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from app import queue
from app.auth import Project
from app.db import new_session
from app.errors import IllegalMove
from app.failpoints import failpoint
from app.files import service as files
from app.files.models import File
from app.jobs import lifecycle, metrics
from app.jobs import service as jobs
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.planning import recipes
from app.registry import manifest as manifests
from app.registry import names
from app.registry import service as registry
from app.registry.manifest import Manifest
from app.registry.models import RegisteredModel
from app.settings import get_settings
from app.storage import Blob, Damaged, get_storage
from app.work import lifecycle as work
from app.work.lifecycle import Claim, Who
from app.work.service import CPU
from app.work.status import WorkKind
from worker import messages, workspace
from worker.lease import Lease
from worker.messages import AnyMessage
from worker.outcomes import Cancelled, Failed, FilesPrepared, Interrupted, Outcome, Paused, Published, TakenOver
from worker.publication import CheckpointPublisher, Origin, publish
from worker.reporter import Reporter
from worker.shutdown import shutting_down
from worker.standby import Trainers
from worker.supervisor import Ending, Finished, attend
from worker.trainer_log import LogShipper

log = logging.getLogger(__name__)


class Slot:
    """One place to train or to prepare: who it is to others, and where its trainers come from."""

    def __init__(self, who: Who, trainers: Trainers) -> None:
        self.who = who
        self.trainers = trainers

    def run(self, queue_name: str) -> None:
        """Do the work of a queue, one attempt after another, until there is none or the worker shuts down."""
        while not shutting_down() and (claim := self.take(queue_name)):
            with Lease(claim) as lease:
                outcome = self.attempt(claim, lease)
                settle(claim, outcome)
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
        with new_session() as session, session.begin():
            return lifecycle.claim(session, queue_name, who=self.who, lease=get_settings().lease_timeout)

    def attempt(self, claim: Claim, lease: Lease) -> Outcome:
        """Make one attempt, and turn whatever happens into how it ended."""
        log.info("attempt %d at %s of %s begins", claim.attempt, claim.kind, claim.subject)
        try:
            folder = workspace.opened(claim)
            with LogShipper(claim, folder / "trainer.log"), Reporter(claim) as reporter:
                match claim.kind:
                    case WorkKind.PREPARE:
                        return self._prepare(claim, folder, lease, reporter)
                    case WorkKind.TRAIN:
                        return self._train(claim, folder, lease, reporter)
                    case _:
                        assert_never(claim.kind)
        except Damaged as error:
            return Failed("storage_damaged", f"What the job needs is not as it was stored: {error}.", retryable=True)
        except OSError as error:
            return Failed("storage_unavailable", f"The worker cannot write or read: {error}.", retryable=True)
        except Exception as error:
            log.exception("attempt %d at %s broke", claim.attempt, claim.subject)
            return Failed("internal_error", f"{type(error).__name__}: {error}", retryable=True)

    def _prepare(self, claim: Claim, folder: Path, lease: Lease, reporter: Reporter) -> Outcome:
        storage = get_storage()
        given = _given(claim)
        queue.ring(given.job.queue)  # whoever will train it may make ready
        if given.parent is not None:
            workspace.fill_parent(folder, given.parent, given.base, storage)
        workspace.fill_for_preparing(folder, given.job, given.files, storage)
        ending = self._attend(claim, folder, lease, reporter.hear)
        if not isinstance(ending, Finished):
            return ending
        prepared = Prepared.model_validate_json((folder / "prepared.json").read_text())
        for name in ("train.parquet", "validation.parquet"):
            if (folder / name).exists():
                storage.put_file(folder / name)
        return FilesPrepared(prepared)

    def _train(self, claim: Claim, folder: Path, lease: Lease, reporter: Reporter) -> Outcome:
        storage = get_storage()
        if (whole := manifests.newest_whole(storage, claim.subject)) is not None:
            # An attempt before this one got as far as the commit point: nothing is trained twice.
            return Published(whole, storage.write_manifest(whole.key, manifests.as_document(whole)))
        given = _given(claim)
        job, prepared = given.job, Prepared.model_validate(given.job.prepared)
        if given.parent is not None:
            workspace.fill_parent(folder, given.parent, given.base, storage)
        workspace.fill_for_training(folder, job, prepared, storage)
        origin = Origin(claim, job, prepared, given.files["training_file"], _project_name(job))
        with CheckpointPublisher(folder, storage, origin) as publisher:

            def hear(message: AnyMessage) -> None:
                reporter.hear(message)
                publisher.hear(message)
                # On a CPU the next trainer starts only at the end: its imports would take the cores that train.
                if isinstance(message, messages.Metrics) and self.who.device["kind"] == "cuda":
                    self.trainers.stand_by(claim.kind)

            ending = self._attend(claim, folder, lease, hear)
            publisher.is_last_chance = isinstance(ending, Finished | Cancelled | Failed)
        return Published(*publish(folder / "result", storage, origin)) if isinstance(ending, Finished) else ending

    def _attend(self, claim: Claim, folder: Path, lease: Lease, hear: Callable[[AnyMessage], None]) -> Ending:
        """Run a trainer on the folder, and have the next one stand by."""
        child = self.trainers.start(claim.kind, folder)
        try:
            return attend(child, lease, folder / "trainer.log", hear)
        finally:
            child.close()
            self.trainers.stand_by(claim.kind)


def settle(claim: Claim, outcome: Outcome) -> None:
    """Write how an attempt ended: one transaction, fenced by the attempt's number, tried until the database answers."""
    log.info("attempt %d at %s of %s: %s", claim.attempt, claim.kind, claim.subject, type(outcome).__name__)
    patience = time.monotonic() + get_settings().database_patience.total_seconds()
    while True:
        try:
            ring = _settle(claim, outcome)
        except IllegalMove:
            log.warning("attempt %d at %s was taken over; its outcome counts no more", claim.attempt, claim.subject)
            return
        except (OperationalError, InterfaceError):
            if time.monotonic() > patience:
                raise
            log.warning("attempt %d at %s: the database is away; settling again", claim.attempt, claim.subject)
            time.sleep(1)  # the database says nothing when it comes back
            continue
        except Exception as error:
            if isinstance(outcome, Failed):
                raise
            log.exception("attempt %d at %s: its outcome cannot be settled", claim.attempt, claim.subject)
            outcome = Failed("internal_error", f"{type(error).__name__}: {error}"[:2000], retryable=True)
            continue
        if ring is not None:
            queue.ring(ring)
        return


def _settle(claim: Claim, outcome: Outcome) -> str | None:
    """Returns the queue to ring, if one waits to hear of this."""
    table = _table_of_metrics(claim) if isinstance(outcome, Published) else None
    with new_session() as session, session.begin():
        match outcome:
            case FilesPrepared(prepared):
                _queue_training(session, claim, prepared)
            case Published(manifest, manifest_sha256):
                assert table is not None  # noqa: S101  made above
                work.require_held(session, claim)  # the table's one row a job would answer a zombie with a crash
                _succeed(session, claim, manifest, manifest_sha256, table)
            case Cancelled():
                lifecycle.stop(session, claim)
            case Paused():
                lifecycle.requeue(session, claim, outcome="paused")
            case Interrupted():
                lifecycle.requeue(session, claim)
            case Failed(retryable=True) if claim.failed_attempts < get_settings().max_retries:
                lifecycle.retry(session, claim, outcome.as_error(), delay=_delay(claim.failed_attempts))
            case Failed():
                lifecycle.fail(session, claim, outcome.as_error())
            case TakenOver():
                return None
            case _:
                assert_never(outcome)
        # The training has come, or is expected no more.
        return session.get_one(Job, claim.subject).queue if claim.kind is WorkKind.PREPARE else None


def _queue_training(session: Session, claim: Claim, prepared: Prepared) -> None:
    job = session.get_one(Job, claim.subject)
    spec = job.current_spec
    facts = recipes.facts_of(prepared, device="cpu" if job.queue == CPU else "cuda")
    lifecycle.queue_training(
        session,
        claim,
        prepared=prepared,
        resolved=recipes.resolve(spec, facts),
        warnings=recipes.warnings(spec, facts),
    )


def _table_of_metrics(claim: Claim) -> Blob:
    """Stored as it is read, before the transaction that ends the job: a long job has hundreds of thousands of steps."""
    storage = get_storage()
    with storage.incoming() as table:
        with new_session() as session, session.begin():
            metrics.write_csv(session, claim.subject, table)
        return storage.commit(table)


def _succeed(session: Session, claim: Claim, manifest: Manifest, manifest_sha256: str, table: Blob) -> None:
    """The registry's row, the file of metrics and the job's end. Raises `Damaged` for a result that lost a blob."""
    storage = get_storage()
    files.keep_blobs(session)
    if not (manifests.is_whole(manifest, storage) and storage.has(*table)):
        raise Damaged("a file was deleted with another model in the moment it was stored for this one")
    result = registry.register(session, manifest, manifest_sha256=manifest_sha256)
    failpoint("before_success")
    file = files.enter_results(session, manifest.project_id, table)
    lifecycle.succeed(session, claim, result, trained_tokens=manifest.report.trained_tokens, result_files=[file.id])


@dataclass(frozen=True, slots=True)
class Given:
    """What an attempt starts from."""

    job: Job
    files: dict[str, File]
    """By the spec's names for them."""
    parent: RegisteredModel | None
    """The registry model that the job starts from."""
    base: RegisteredModel | None
    """Of a parent that is an adapter, where its base is a registry model too."""


def _given(claim: Claim) -> Given:
    with new_session() as session, session.begin():
        job = session.get_one(Job, claim.subject)
        spec = job.current_spec
        given = {"training_file": files.used(session, job.project_id, spec.training_file)}
        if spec.validation_file is not None:
            given["validation_file"] = files.used(session, job.project_id, spec.validation_file)
        if not names.is_registered(spec.model):
            return Given(job, given, parent=None, base=None)
        parent = registry.used(session, spec.model)
        return Given(job, given, parent, registry.base_of(session, parent) if parent.kind == "adapter" else None)


def _project_name(job: Job) -> str:
    with new_session() as session, session.begin():
        return session.get_one(Project, job.project_id).name


def _delay(failed_attempts: int) -> timedelta:
    """How long until the next try: the settings' table, and up to a quarter more, so that many do not come at once."""
    delays = get_settings().retry_delays
    return delays[min(failed_attempts, len(delays) - 1)] * random.uniform(1, 1.25)  # noqa: S311  no secret
