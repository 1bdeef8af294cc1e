"""The rows that a plan is made for: assumed, counted for this base already, or estimated from a file's size."""

from typing import Literal

from sqlalchemy.orm import Session

from app.files.models import File
from app.files.report import PreparedFile, Report
from app.files.spec import DataSpec
from app.jobs.prepared import Prepared
from app.planning.bases import Base
from app.planning.plan import Data
from app.plans.recommendations import BYTES_A_TOKEN
from app.plans.spec import Assume
from app.reports import service as reports

LONGEST_OVER_MEAN = 8
"""A guess at the longest row of a file that nobody has tokenised yet: of chats it is 5 to 20 times the mean."""
SHORTEST_GUESS = 64


def assumed(assume: Assume, spec: DataSpec, base: Base) -> Data:
    """As the caller says, but for what is held out."""
    longest = _within(assume.longest, spec, base)
    return _kept(assume.rows, assume.tokens, longest, "assumed", spec.held_out_of(assume.rows))


def counted(session: Session, file: File, spec: DataSpec, tokenizer_sha256: str) -> Data | None:
    """What a report or a preparation of the file found, with the same tokenizer and settings; None: there is none."""
    settings = spec.model_dump(mode="json", exclude={"model"})
    report = reports.newest(session, file.sha256, tokenizer_sha256=tokenizer_sha256, settings=settings)
    return None if report is None or report.train_set is None else _of_report(report, report.train_set)


def estimated(file: File, spec: DataSpec, base: Base) -> Data:
    """From bytes and rows, of which the upload's judgement knows."""
    rows, tokens = file.rows or 1, max(1, file.bytes // BYTES_A_TOKEN)
    longest = max(SHORTEST_GUESS, LONGEST_OVER_MEAN * tokens // rows)
    return _kept(rows, tokens, _within(longest, spec, base), "estimated", spec.held_out_of(rows))


def _kept(rows: int, tokens: int, longest: int, basis: Literal["assumed", "estimated"], holdout: float) -> Data:
    """Of all rows those that are not held out, which are taken to be as long as the others."""
    share = 1 - holdout
    return Data(max(1, round(rows * share)), max(1, round(tokens * share)), longest, basis, holdout=holdout)


def prepared(found: Prepared) -> Data:
    """What a job's preparation has made."""
    validation = found.validation.longest_row if found.validation else 0
    holdout = found.resolved.holdout if found.resolved else 0.0
    return _of_set(found.train, max(found.train.longest_row, validation), holdout)


def _of_report(report: Report, train: PreparedFile) -> Data:
    validation = report.validation_set.longest_row if report.validation_set else 0
    return _of_set(train, max(train.longest_row, validation), report.resolved.holdout)


def _of_set(train: PreparedFile, longest: int, holdout: float) -> Data:
    return Data(
        rows=train.rows,
        tokens=train.tokens,
        longest_row=longest,
        basis="counted",
        packs=train.packs,
        packing_saves=train.packing_saves,
        holdout=holdout,
        wanted=train.wanted,
    )


def _within(longest: int, spec: DataSpec, base: Base) -> int:
    """As long as a row may be."""
    return min(longest, base.context_length if spec.max_length == "auto" else spec.max_length)
