"""From uploaded files to what training reads, and the report on them: looked through, tokenised, labelled, packed.

A job's preparation and a report that somebody asked for are the same, so what the report shows is what is trained on.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.files.findings import Code, Finding, Place, at
from app.files.report import FileName, PreparedFile, Report, Resolved
from app.files.rows import GradedRow, Row
from app.files.spec import DataPolicy, DataSpec
from app.graders.templates import has
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.planning import recipes, setups
from app.registry import identity
from worker import messages
from worker.training import failures, packing, reporting, templates
from worker.training.base import BaseFolder, locate, locate_tokenizer, parent_of
from worker.training.child import Report as Tell
from worker.training.comparison import HOLDOUT, Comparison, benchmarks_sha256
from worker.training.inspection import Findings
from worker.training.labels import labelled
from worker.training.reporting import Made
from worker.training.survey import Survey, survey
from worker.training.tokenise import GRADED, PREFERENCES, SCHEMA, UNPAIRED, Fitting, Limit, RowSet, digest_of, pieces

VERSION = 2
"""Counts up when the same rows come to other tokens, or to another report: sets that were kept fit no more."""
FILES: tuple[FileName, ...] = ("training_file", "validation_file")
SCHEMAS = dict.fromkeys(setups.PAIRS, PREFERENCES) | {"kto": UNPAIRED, "reinforcement": GRADED}
"""Of the methods whose rows are not one sequence with labels."""
PACKED = ("supervised", "continued_pretraining")
"""Methods whose rows can share a sequence."""
PIECE = 2048
"""Tokens of the pieces that long texts are cut into where nothing is said: what Llama was pretrained on. Memory grows
with it, and the context of a base for chat may be sixty times that."""
MADE = ("report.json", "findings.jsonl", "train.arrow", "validation.arrow", "rows.arrow")


@dataclass(frozen=True, slots=True)
class Base:
    """What of a base model decides over tokens."""

    tokenizer: PreTrainedTokenizerBase
    tokenizer_sha256: str
    chat_template_sha256: str | None
    model_type: str
    context_length: int


def prepare(work_dir: Path, tell: Tell) -> Prepared:
    """WORKDIR/job.json and the uploaded files → Arrow files, the report on them, and prepared.json last.

    Raises `FileUnusable` for what cannot be trained on; the report is written then too.
    """
    tell(messages.Phase(phase="preparing"))
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    folder = locate(spec.model, work_dir)
    config = _text_config(folder)
    base = _base(folder, config)
    report = read(work_dir, recipes.data_spec(spec), base)
    for notice in reporting.notices(report, spec):
        tell(notice)
    if report.refusals or report.train_set is None:
        raise failures.FileUnusable(report.refusals[0].file, reporting.refusal(report))
    if spec.hyperparameters.early_stopping_patience is not None and report.validation_set is None:
        raise failures.SpecUnusable(
            spec.param("early_stopping_patience"),
            f"early stopping goes by the loss on validation rows, and of {report.training.rows.total} none is held out."
            " Send evaluation.holdout, such as 0.1, or a validation_file.",
        )
    _require_a_step(spec, report)
    prepared = Prepared(
        base=folder.identity(),
        parent=parent_of(work_dir),
        model_type=base.model_type,
        hidden_size=_number(config, "hidden_size", "n_embd", "d_model"),
        context_length=base.context_length,
        resolved=report.resolved,
        train=report.train_set,
        validation=report.validation_set,
    )
    write_last(work_dir / "prepared.json", prepared.model_dump_json(indent=2))
    return prepared


def _require_a_step(spec: JobSpec, report: Report) -> None:
    """Of reinforcement a step is whole or not at all. Raises `SpecUnusable` where there are too few prompts for one."""
    if spec.method.type != "reinforcement" or report.train_set is None:
        return
    rows = report.train_set.rows
    wanted = recipes.batch(spec, recipes.recipe_of(spec), rows=rows)["batch_size"]
    if wanted > rows:
        raise failures.SpecUnusable(
            spec.param("batch_size"),
            f"a step takes {wanted} prompts, and there are {rows} to train on. Send a batch_size of at most {rows}.",
        )


def answer(work_dir: Path, tell: Tell) -> Report:
    """WORKDIR/data.json and the uploaded files → the same files and report, for whoever asks with no job."""
    tell(messages.Phase(phase="preparing"))
    spec = DataSpec.model_validate_json((work_dir / "data.json").read_text())
    folder = locate_tokenizer(spec.model, work_dir)
    return read(work_dir, spec, _base(folder, _text_config(folder)))


def read(work_dir: Path, spec: DataSpec, base: Base) -> Report:
    """The report, from WORKDIR/known.json where it has been made before. report.json is written last."""
    for name in MADE:
        (work_dir / name).unlink(missing_ok=True)
    policy = _read_policy(work_dir)
    limit = _limit(spec, base)
    key = _key(work_dir, spec, policy, base, limit)
    report = _known(work_dir).get(key)
    if report is None:
        with (work_dir / "findings.jsonl").open("wb") as out:
            report = _Preparation(work_dir, spec, policy, base, limit, Findings(out)).report(key)
    write_last(work_dir / "report.json", report.model_dump_json(indent=2))
    return report


class _Preparation:
    """The steps of one preparation; what they share is here."""

    def __init__(
        self, work_dir: Path, spec: DataSpec, policy: DataPolicy, base: Base, limit: Limit, findings: Findings
    ) -> None:
        self._work_dir, self._spec, self._policy = work_dir, spec, policy
        self._base, self._limit, self._findings = base, limit, findings

    def report(self, key: str) -> Report:
        """Look the files through, tokenise and pack them, and say what was found."""
        surveys = {
            name: survey(name, self._work_dir / name, self._spec.method, self._findings)
            for name in FILES
            if (self._work_dir / name).exists()
        }
        training, validation = surveys["training_file"], surveys.get("validation_file")
        holdout = self._spec.held_out_of(training.readable) if validation is None else 0.0
        validating = validation or training.held_out(holdout)
        comparison = Comparison(
            characters=(self._work_dir / "training_file").stat().st_size, benchmarks=_benchmarks(self._policy)
        )
        if validation or holdout:
            comparison.take("validation_file" if validation else HOLDOUT, validating.read())
        validated = self._written(validating, "validation.arrow")
        train = self._written(training.trained(holdout), "train.arrow", comparison)
        made, validation_set = train.described(), validated.described()
        max_length = self._max_length(made, validation_set)
        train_set = self._packed(made, max_length) if made is not None else None
        found = self._findings.summed({name: one.rows for name, one in surveys.items()})
        held_out = 0 if validation else validated.rows.of_file
        return Report(
            key=key,
            method=self._spec.method,
            tokenizer_sha256=self._base.tokenizer_sha256,
            chat_template_sha256=self._base.chat_template_sha256,
            template=templates.way(self._base.tokenizer),
            settings=self._spec.model_dump(mode="json", exclude={"model"}),
            resolved=Resolved(
                max_length=max_length,
                packing=train_set is not None and train_set.packs is not None,
                holdout=holdout,
            ),
            training=reporting.part(training, train, self._findings, held_out=held_out),
            validation=reporting.part(validation, validated, self._findings) if validation else None,
            findings=found,
            overlaps=comparison.summed(),
            refusals=reporting.refusals(found, self._policy, learnt=self._learnt(train)),
            train_set=train_set,
            validation_set=validation_set,
            notes=comparison.limits(),
        )

    def _learnt(self, train: Made) -> int:
        """Tokens that are trained, or prompts whose answers will be."""
        return train.rows.rows if self._spec.method == "reinforcement" else train.rows.trained_tokens

    def _written(self, survey: Survey, name: str, comparison: Comparison | None = None) -> Made:
        """A set of a file's rows, with labels; findings of what does not get there."""
        fitting = Fitting(self._limit)
        rows = RowSet(self._work_dir / name, SCHEMAS.get(self._spec.method, SCHEMA))
        read = self._compared(survey, comparison) if comparison else survey.read()
        if self._spec.method == "reinforcement":
            read = self._gradable(survey.name, read)
        made = labelled(read, self._base.tokenizer, self._spec.train_on)
        for item in pieces(made, self._limit.tokens) if self._spec.method == "continued_pretraining" else made:
            row, finding = (None, item) if isinstance(item, Finding) else fitting.fitted(item)
            if finding is not None:
                self._findings.add(survey.name, finding)
            if row is not None:
                rows.add(row)
        rows.close()
        return Made(rows, fitting)

    def _compared(self, survey: Survey, comparison: Comparison) -> Iterable[tuple[Place, Row]]:
        for place, row in survey.read():
            for finding in comparison.findings(place, row):
                self._findings.add(survey.name, finding)
            yield place, row

    def _gradable(self, file: FileName, rows: Iterable[tuple[Place, Row]]) -> Iterator[tuple[Place, Row]]:
        """Those that have what their grader reads, and of their fields only those; findings of the others."""
        paths = self._spec.item_paths
        names = {re.split(r"[.\[]", path, maxsplit=1)[0] for path in paths}
        for place, row in rows:
            assert isinstance(row, GradedRow)  # noqa: S101  so they are read for this method
            if missing := [path for path in paths if not has(row.item, path)]:
                wanted = " and ".join(f"'{{{{item.{path}}}}}'" for path in missing)
                message = f"the grader reads {wanted}, which the row does not have. Add it, or change the grader."
                self._findings.add(file, at(place, Code.NO_ITEM, message, field=missing[0]))
                continue
            item = {name: value for name, value in row.item.items() if name in names}
            yield place, msgspec.structs.replace(row, item=item)

    def _max_length(self, *sets: PreparedFile | None) -> int:
        """Tokens that a row, or a pack, may have: as asked for, else those of the longest row."""
        longest = max((made.longest_row for made in sets if made is not None), default=self._limit.tokens)
        return (longest if self._spec.max_length == "auto" else self._limit.tokens) + self._limit.room_behind

    def _packed(self, made: PreparedFile, max_length: int) -> PreparedFile:
        """The training set in packs, where that is wished or, left open, worth it."""
        if self._spec.method not in PACKED:
            return made
        path, rows = self._work_dir / "train.arrow", self._work_dir / "rows.arrow"
        saves = packing.saved_share(packing.lengths_of(path), self._spec.per_device_train_batch_size)
        made = made.model_copy(update={"packing_saves": round(saves, 4)})
        wished = self._spec.packing
        if wished == "auto":
            wished = recipes.is_worth_packing(self._base.model_type, saves)
        if not wished:
            return made
        path.replace(rows)
        packs = packing.pack(rows, path, max_length, most_rows=self._spec.most_rows_per_pack)
        rows.unlink()
        return made.model_copy(
            update={"packs": packs, "longest_row": int(packing.lengths_of(path).max()), **digest_of(path)}
        )


def _key(work_dir: Path, spec: DataSpec, policy: DataPolicy, base: Base, limit: Limit) -> str:
    """Digest of everything that the set and its report depend on."""
    parts = [
        VERSION,
        *(digest_of(work_dir / name)["sha256"] if (work_dir / name).exists() else None for name in FILES),
        spec.sha256,
        limit.tokens,
        base.model_type,
        base.tokenizer_sha256,
        base.chat_template_sha256,
        sorted(policy.refuse_above.items()),
        benchmarks_sha256(_benchmarks(policy)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _known(work_dir: Path) -> dict[str, Report]:
    """Reports on the same files that are kept, with their sets; by hand there are none."""
    path = work_dir / "known.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    return {key: Report.model_validate(report) for key, report in known.items()}


def _benchmarks(policy: DataPolicy) -> Path | None:
    return Path(policy.benchmarks) if policy.benchmarks else None


def _read_policy(work_dir: Path) -> DataPolicy:
    path = work_dir / "policy.json"
    return DataPolicy.model_validate_json(path.read_text()) if path.exists() else DataPolicy()


def load_tokenizer(base: BaseFolder) -> PreTrainedTokenizerBase:
    """A base's tokenizer, as transformers makes it. Raises `UnusableBase`."""
    try:
        return AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged tokenizer.json the library raises nothing narrower
        raise identity.UnusableBase(
            "its tokenizer cannot be loaded. Copy tokenizer.json and tokenizer_config.json whole."
            f" {' '.join(str(error).split())[:300]}"
        ) from error


def _text_config(base: BaseFolder) -> dict[str, Any]:
    """`config.json`, or the part of it that describes the language model."""
    config = identity.read_config(base.path)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _base(folder: BaseFolder, config: dict[str, Any]) -> Base:
    tokenizer_sha256, chat_template_sha256 = identity.of_tokenizer(folder.path)
    return Base(
        tokenizer=load_tokenizer(folder),
        tokenizer_sha256=tokenizer_sha256,
        chat_template_sha256=chat_template_sha256,
        model_type=str(config.get("model_type", "")),
        context_length=_context_length(config),
    )


def _limit(spec: DataSpec, base: Base) -> Limit:
    if spec.max_length != "auto" and spec.max_length > base.context_length:
        raise failures.SpecUnusable(
            f"method.{spec.method}.hyperparameters.max_length",
            f"max_length {spec.max_length} is beyond the model's context of {base.context_length} tokens.",
        )
    longest = min(base.context_length, PIECE) if spec.method == "continued_pretraining" else base.context_length
    most = longest if spec.max_length == "auto" else spec.max_length
    room = recipes.auto_completion(most) if spec.room_behind == "auto" else spec.room_behind
    if room >= most:
        raise failures.SpecUnusable(
            f"method.{spec.method}.hyperparameters.max_completion_length",
            f"max_completion_length {room} leaves no room for a prompt in the model's context of"
            f" {base.context_length} tokens. Send a smaller one.",
        )
    return Limit(most - room, spec.truncate, room)


def _context_length(config: dict[str, Any]) -> int:
    return _number(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def _number(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise identity.UnusableBase(f"its config.json names none of {', '.join(names)}.")


def write_last(path: Path, content: str) -> None:
    """Write a file whole or not at all: its presence says that everything before it is complete."""
    arriving = path.with_suffix(".arriving")
    with arriving.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    arriving.replace(path)
