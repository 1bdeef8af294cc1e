"""Rows of a prepared set, read out of storage by their number: what a preview shows is what a trainer reads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from app.files.findings import SEVERITY, Finding
from app.files.report import PreparedFile, Report
from app.storage import Blob, Storage

if TYPE_CHECKING:
    import pyarrow as pa

By = Literal["row", "line"]
IGNORED = -100
"""The label of a token that is not trained."""


def chosen(storage: Storage, report: Report, findings: Blob, asked: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The rows of the training file that were asked for, in that order, or what is in the way of them.

    Each is `row`, `line`, `set`, `pack`, `problem`, and `sequences` of `name`, `input_ids` and `trained`.
    """
    by: By = "line" if "lines" in asked else "row"
    wanted = asked.get("lines") or asked.get("rows") or []
    found: dict[int, dict[str, Any]] = {}
    for name, made in (("training", report.train_set), ("validation", report.validation_set)):
        # Without a validation file, the validation set is rows of the training file that are held out.
        if made is not None and (name == "training" or report.validation is None):
            found |= _of_set(storage, name, made, by, set(wanted) - found.keys())
    missing = set(wanted) - found.keys()
    found |= _refused(storage, findings, by, missing) if missing else {}
    return [found.get(number) or _absent(number, by, report.training.rows.total) for number in wanted]


def _of_set(storage: Storage, name: str, made: PreparedFile, by: By, wanted: set[int]) -> dict[int, dict[str, Any]]:
    from pyarrow import ipc  # with NumPy an eighth of a process's start, and only previews need it

    found: dict[int, dict[str, Any]] = {}
    with storage.open(made.sha256) as file, ipc.open_stream(file) as reader:
        for batch in reader:
            if wanted <= found.keys():
                break
            for at, number in _places(batch, by):
                if number in wanted:
                    found[number] = _as_shown(name, number, by, batch.slice(at, 1).to_pylist()[0])
    return found


def _places(batch: "pa.RecordBatch", by: By) -> Iterator[tuple[int, int]]:
    """Where in a batch each row is, a pack's rows all where the pack is."""
    for at, numbers in enumerate(batch.column(f"{by}s").to_pylist()):
        for number in numbers:
            if number is not None:
                yield at, number


def _as_shown(name: str, number: int, by: By, made: dict[str, Any]) -> dict[str, Any]:
    at = made[f"{by}s"].index(number)
    packed = made.get("seq_lengths") is not None
    pairs = [("text", "input_ids", "labels")]
    if made.get("rejected_input_ids") is not None:
        pairs = [("chosen", "input_ids", "labels"), ("rejected", "rejected_input_ids", "rejected_labels")]
    return {
        "row": made["rows"][at],
        "line": made["lines"][at],
        "set": name,
        "pack": made["rows"] if packed else None,
        "sequences": [
            {
                "name": sequence,
                "input_ids": made[ids],
                # The first token of a sequence is never predicted, nor is the first of a row that is packed.
                "trained": _trained(made[labels], made.get("seq_lengths")),
            }
            for sequence, ids, labels in pairs
        ],
        "problem": None,
    }


def _trained(labels: list[int], lengths: list[int] | None) -> list[bool]:
    trained = [label != IGNORED for label in labels]
    begins = 0
    for length in lengths or [len(labels)]:
        trained[begins] = False
        begins += length
    return trained


def _refused(storage: Storage, findings: Blob, by: By, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Rows that are in no set, each with the first error that was found in it."""
    found: dict[int, dict[str, Any]] = {}
    decoder = msgspec.json.Decoder(Finding)
    with storage.open(findings.sha256) as file:
        for text in file:
            finding = decoder.decode(text)
            number = finding.line if by == "line" else finding.row
            if number in wanted and number not in found and SEVERITY[finding.code] == "error":
                found[number] = _problem(finding.row, finding.line, str(finding))
    return found


def _absent(number: int, by: By, rows: int) -> dict[str, Any]:
    row, line = (number, None) if by == "row" else (None, number)
    what = f"The file has {rows} rows." if by == "row" else "No row begins on this line."
    return _problem(row, line, what)


def _problem(row: int | None, line: int | None, problem: str) -> dict[str, Any]:
    return {"row": row, "line": line, "set": None, "pack": None, "sequences": [], "problem": problem}
