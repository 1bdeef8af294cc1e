"""Attempts at what the `prepare` queue holds: a job's files, a report on a file, a preview of some rows, a dry run."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from app import queue
from app.db import new_session
from app.files import service as files
from app.files.models import File
from app.files.report import Report
from app.files.spec import DataSpec
from app.jobs.prepared import Prepared
from app.planning.dry_runs import Asked, DryRun
from app.plans import stored as plans
from app.registry.models import RegisteredModel
from app.reports import service as reports
from app.reports.models import FilePreview, FileReport, PreparedSet
from app.storage import Blob, Damaged, Storage, get_storage
from app.work.lifecycle import Claim
from worker import sets, workspace
from worker.given import given, models
from worker.outcomes import Answered, Cancelled, Counted, FilesPrepared, Outcome, Shown
from worker.patience import patient
from worker.supervisor import Ending, Finished

Attend = Callable[[], Ending]
"""Runs a trainer on the attempt's folder."""


def prepare(claim: Claim, folder: Path, attend: Attend) -> Outcome:
    """A job's files; the report on them is kept whether they can be trained on or not."""
    storage = get_storage()
    start = given(claim)
    queue.ring(start.job.queue)  # whoever will train it may make ready
    if start.parent is not None:
        workspace.fill_parent(folder, start.parent, start.base, storage)
    (folder / "job.json").write_text(start.job.current_spec.model_dump_json(indent=2))
    _fill(folder, start.files, storage)
    ending = attend()
    _keep_set(folder, start.files, storage)
    if not isinstance(ending, Finished):
        return ending
    return FilesPrepared(Prepared.model_validate_json((folder / "prepared.json").read_text()))


def answer(claim: Claim, folder: Path, attend: Attend) -> Outcome:
    """A report that somebody asked for."""
    storage = get_storage()
    asked = _report_asked_for(claim)
    if asked is None:
        return Cancelled()  # its file was deleted meanwhile
    if asked.parent is not None:
        workspace.fill_parent(folder, asked.parent, asked.base, storage, weights=False)
    (folder / "data.json").write_text(asked.spec.model_dump_json(indent=2))
    _fill(folder, asked.files, storage)
    ending = attend()
    report = _keep_set(folder, asked.files, storage)
    return Answered(report.key) if isinstance(ending, Finished) and report is not None else _unfinished(ending)


class _Asked(NamedTuple):
    """A report or a preview that somebody asked for, and what it is made of."""

    spec: DataSpec
    files: dict[str, File]
    parent: RegisteredModel | None
    base: RegisteredModel | None


@patient
def _report_asked_for(claim: Claim) -> _Asked | None:
    with new_session() as session, session.begin():
        asked = session.get(FileReport, claim.subject)
        if asked is None:
            return None
        spec = DataSpec.model_validate(asked.request)
        named = {"training_file": asked.file_id, "validation_file": asked.validation_file_id}
        by_name = {name: session.get_one(File, file_id) for name, file_id in named.items() if file_id is not None}
        if any(file.deleted_at is not None for file in by_name.values()):
            return None
        return _Asked(spec, by_name, *models(session, spec.model))


def show(claim: Claim, folder: Path, attend: Attend) -> Outcome:
    """Some rows of a set, token by token."""
    storage = get_storage()
    read = _preview_asked_for(claim)
    if read is None:
        return Cancelled()  # its file was deleted meanwhile
    asked, rows, found = read
    if asked.parent is not None:
        workspace.fill_parent(folder, asked.parent, asked.base, storage, weights=False)
    (folder / "data.json").write_text(asked.spec.model_dump_json(indent=2))
    report, findings = Report.model_validate(found.report), Blob(found.findings_sha256, found.findings_bytes)
    (folder / "shown.json").write_text(json.dumps(sets.chosen(storage, report, findings, rows)))
    ending = attend()
    return Shown(json.loads((folder / "preview.json").read_text())) if isinstance(ending, Finished) else ending


@patient
def _preview_asked_for(claim: Claim) -> tuple[_Asked, dict[str, list[int]], PreparedSet] | None:
    """With the rows that are wanted, and the set that they are of."""
    with new_session() as session, session.begin():
        asked = session.get(FilePreview, claim.subject)
        if asked is None:
            return None
        of = session.get_one(FileReport, asked.report_id)
        if session.get_one(File, of.file_id).deleted_at is not None:
            return None
        spec = DataSpec.model_validate(of.request)
        found = session.get_one(PreparedSet, of.set_key)
        return _Asked(spec, {}, *models(session, spec.model)), asked.asked, found


def count(claim: Claim, folder: Path, attend: Attend) -> Outcome:
    """What a step would take, for plans; it is asked for by a base's config alone."""
    asked = _step_asked_for(claim)
    if asked is None:
        return Cancelled()  # its plans are forgotten
    (folder / "config.json").write_text(json.dumps(asked.config))
    (folder / "job.json").write_text(asked.spec.model_dump_json(indent=2))
    (folder / "device.json").write_text(json.dumps(asdict(asked.device)))
    if asked.goes_on:
        (folder / "parent").mkdir(exist_ok=True)
    ending = attend()
    if not isinstance(ending, Finished):
        return ending
    return Counted(TypeAdapter(DryRun).validate_json((folder / "dry_run.json").read_text()))


@patient
def _step_asked_for(claim: Claim) -> Asked | None:
    with new_session() as session, session.begin():
        return plans.asked(session, claim.subject)


def _fill(folder: Path, by_name: dict[str, File], storage: Storage) -> None:
    training, validation = by_name["training_file"], by_name.get("validation_file")
    known = _known(training, validation)
    whole = {key: report for key, report in known.items() if _is_stored(report, storage)}
    workspace.fill_for_preparing(folder, by_name, whole, storage)


@patient
def _known(training: File, validation: File | None) -> dict[str, Report]:
    with new_session() as session, session.begin():
        return reports.known(session, training.sha256, validation.sha256 if validation else None)


def _is_stored(report: Report, storage: Storage) -> bool:
    sets_made = [made for made in (report.train_set, report.validation_set) if made is not None]
    return all(storage.has(made.sha256, made.bytes) for made in sets_made)


def _keep_set(folder: Path, by_name: dict[str, File], storage: Storage) -> Report | None:
    """Store what the trainer left, for the next job of the same rows; None where it came to no report."""
    if not (folder / "report.json").exists():
        return None
    report = Report.model_validate_json((folder / "report.json").read_text())
    if not (folder / "findings.jsonl").exists():
        return report  # it was known, and its set is kept already
    for name in ("train.arrow", "validation.arrow"):
        if (folder / name).exists():
            storage.put_file(folder / name)
    findings = storage.put_file(folder / "findings.jsonl")
    _enter_set(report, findings, by_name["training_file"], by_name.get("validation_file"), storage)
    return report


@patient
def _enter_set(report: Report, findings: Blob, training: File, validation: File | None, storage: Storage) -> None:
    with new_session() as session, session.begin():
        files.keep_blobs(session)
        if not (storage.has(*findings) and _is_stored(report, storage)):
            raise Damaged("tokenised rows were deleted with another set in the moment they were stored for this one")
        reports.enter_set(
            session,
            report,
            findings,
            training_sha256=training.sha256,
            validation_sha256=validation.sha256 if validation else None,
        )


def _unfinished(ending: Ending) -> Outcome:
    assert not isinstance(ending, Finished)  # noqa: S101  a trainer that is done has left its report
    return ending
