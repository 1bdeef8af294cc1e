"""What was found, put together: the report, its refusals, and what a job's events say of it."""

from dataclasses import dataclass
from typing import Any

from app.files.findings import Code
from app.files.report import FilePart, Found, PreparedFile, Refusal, Report, Rows, Where
from app.files.spec import DataPolicy
from app.jobs.spec import JobSpec
from worker import messages
from worker.training.inspection import Findings
from worker.training.survey import Survey
from worker.training.tokenise import Fitting, RowSet

NAMED = 5
"""Places that a sentence names."""
REFUSALS_SAID = 3


@dataclass(frozen=True, slots=True)
class Made:
    """A set of rows, and how they came to fit into it."""

    rows: RowSet
    fitting: Fitting

    def described(self) -> PreparedFile | None:
        """None where no row got there."""
        return self.rows.described(self.fitting.truncated_rows) if self.rows.rows else None


def part(survey: Survey, made: Made, findings: Findings, *, held_out: int = 0) -> FilePart:
    """One file, or what of it is trained on."""
    rows = made.rows
    return FilePart(
        format=survey.format,
        rows=Rows(
            total=survey.rows, used=rows.of_file, held_out=held_out, refused=findings.rows_with_errors(survey.name)
        ),
        tokens=rows.tokens,
        trained_tokens=rows.trained_tokens,
        trained_share=round(rows.trained_tokens / rows.tokens, 4) if rows.tokens else 0.0,
        lengths=made.fitting.lengths,
        truncated=made.fitting.truncated,
    )


def refusals(found: list[Found], policy: DataPolicy, *, learnt: int) -> list[Refusal]:
    """Why this cannot be trained on: every kind of error, kinds beyond what the operator allows, nothing learnt."""
    reasons = [
        Refusal(file=one.file, code=one.code, message=_of_errors(one)) for one in found if one.severity == "error"
    ]
    reasons += [
        Refusal(file=one.file, code=one.code, message=_of_policy(one, policy.refuse_above[one.code]))
        for one in found
        if one.severity == "warning" and one.share > policy.refuse_above.get(one.code, 1.0)
    ]
    if not learnt and not reasons:
        message = "nothing of it is trained. Hold fewer rows out, or add some."
        reasons.append(Refusal(file="training_file", code=Code.NOTHING_TRAINED, message=message))
    return reasons


def refusal(report: Report) -> str:
    """The first reasons, in a sentence or two each, and where all of them are."""
    first = report.refusals[0].file
    said = [one for one in report.refusals if one.file == first]
    more = len(report.refusals) - len(said[:REFUSALS_SAID])
    return " ".join(one.message for one in said[:REFUSALS_SAID]) + (f" And {more} more kinds." if more else "")


def notices(report: Report, spec: JobSpec) -> list[messages.Notice]:
    """For a job's events: what there is to train on, and each kind of finding."""
    parts = {"training_file": report.training, "validation_file": report.validation}
    names = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    count = _prompts if report.method == "reinforcement" else _counts
    told = [_notice("info", f"{names[name]}: {count(one)}") for name, one in parts.items() if one is not None]
    if report.training.rows.held_out:
        held_out = f"{report.training.rows.held_out} rows of {spec.training_file} are held out for validation"
        told.append(_notice("info", held_out))
    if (packed := report.train_set) is not None and packed.packs is not None:
        saved = f"which saves {100 * packed.packing_saves:.0f} % of the tokens"
        told.append(_notice("info", f"{packed.rows} rows are packed into {packed.packs} sequences, {saved}"))
    for one in report.findings:
        level = "error" if one.severity == "error" else "warn"
        told.append(_notice(level, f"{names[one.file]}: {one.code} in {_some(one.rows, 'row')}: {_example(one)}"))
    return told + [_notice("warn", note) for note in report.notes]


def _notice(level: Any, message: str) -> messages.Notice:
    return messages.Notice(level=level, message=message)


def _counts(one: FilePart) -> str:
    cut = f", {_some(one.truncated.rows, 'row')} cut" if one.truncated.rows else ""
    longest = f", longest row {one.lengths.max} tokens" if one.lengths else ""
    return (
        f"{_some(one.rows.used, 'row')}, {one.tokens} tokens, {one.trained_tokens} of them trained"
        f" ({100 * one.trained_share:.0f} %){longest}{cut}"
    )


def _prompts(one: FilePart) -> str:
    longest = f", the longest of {one.lengths.max}" if one.lengths else ""
    return f"{_some(one.rows.used, 'prompt')}, {one.tokens} tokens{longest}"


def _of_errors(one: Found) -> str:
    return _example(one)


def _of_policy(one: Found, allowed: float) -> str:
    return (
        f"{100 * one.share:.1f} % of the rows have {one.code}, and this server allows {100 * allowed:g} %:"
        f" {_example(one)}"
    )


def _example(one: Found) -> str:
    """The first finding in its own words, and where the others are."""
    others = [str(_place(where)) for where in one.first[1 : NAMED + 1]]
    if not others:
        return one.example
    more = one.rows - 1 - len(others)
    return f"{one.example} The same in {', '.join(others)}" + (f" and {_some(more, 'more row')}." if more else ".")


def _place(where: Where) -> str:
    return f"row {where.row}" if where.line is None else f"line {where.line}"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
