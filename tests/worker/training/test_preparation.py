"""The report that preparing writes: what is held out, refused, compared, and known already."""

import json
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest

from app.files.report import Report
from app.files.spec import DataSpec
from tests import tiny
from worker.training import preparation
from worker.training.base import locate_tokenizer
from worker.training.labels import IGNORED


class MakeWorkDir(Protocol):
    def __call__(
        self, rows: Any, *, validation: Any = None, policy: dict[str, Any] | None = None, **asked: Any
    ) -> Path: ...


@pytest.fixture
def work_dir_of(tmp_path: Path) -> MakeWorkDir:
    """A WORKDIR as a worker fills it for a report."""

    def make(rows: Any, *, validation: Any = None, policy: dict[str, Any] | None = None, **asked: Any) -> Path:
        work_dir = tmp_path / f"work-{len(list(tmp_path.glob('work-*')))}"
        work_dir.mkdir()
        for name, content in (("training_file", rows), ("validation_file", validation)):
            if content is not None:
                (work_dir / name).write_bytes(content if isinstance(content, bytes) else tiny.jsonl(content))
        (work_dir / "data.json").write_text(DataSpec(model="tiny", **{"packing": False, **asked}).model_dump_json())
        if policy is not None:
            (work_dir / "policy.json").write_text(json.dumps(policy))
        return work_dir

    return make


def report_on(work_dir: Path) -> Report:
    return preparation.answer(work_dir, lambda _: None)


def rows_in(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        return list(pa.ipc.open_stream(source).read_all().to_pylist())


def held_out(work_dir: Path) -> set[int]:
    return {number for row in rows_in(work_dir / "validation.arrow") for number in row["rows"]}


def test_prompts_are_prepared_with_what_their_grader_reads(work_dir_of: MakeWorkDir) -> None:
    asked: dict[str, Any] = {"method": "reinforcement", "item_paths": ["answer", "more[0].x"], "room_behind": 8}
    rows = [{**row, "more": [{"x": 1}], "unread": "z"} for row in tiny.graded_rows(4)]
    report = report_on(work_dir := work_dir_of(rows, **asked))

    tokenizer = preparation.load_tokenizer(locate_tokenizer("tiny", work_dir))
    for row, made in zip(rows, rows_in(work_dir / "train.arrow"), strict=True):
        prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
        assert made["input_ids"] == prompt
        assert set(made["labels"]) == {IGNORED}
        assert json.loads(made["item"]) == {"answer": row["answer"], "more": [{"x": 1}]}
    assert not report.refusals
    assert report.train_set is not None
    assert report.resolved.max_length == report.train_set.longest_row + 8


def test_prompts_that_cannot_be_graded_are_refused_with_their_lines(work_dir_of: MakeWorkDir) -> None:
    asked: dict[str, Any] = {"method": "reinforcement", "item_paths": ["answer"], "room_behind": 8}
    rows = tiny.graded_rows(4)
    lacking = [
        rows[0],
        {"messages": rows[1]["messages"]},
        {**rows[2], "answer": None},
        {"messages": rows[3]["messages"]},
    ]

    (refusal,) = report_on(work_dir_of(lacking, **asked)).refusals
    assert refusal.code == "no_item"
    assert refusal.message.startswith("line 2: the grader reads '{{item.answer}}', which the row does not have.")
    assert refusal.message.endswith("The same in line 4.")
    (refusal,) = report_on(work_dir_of(rows, max_length=20, **asked)).refusals
    assert refusal.code == "over_long"
    assert "max_completion_length leaves 12 of 20 for it" in refusal.message
    (finding,) = report_on(work_dir_of(tiny.chat_rows(3), **{**asked, "item_paths": ["messages[1].content"]})).findings
    assert (finding.code, finding.severity, finding.rows) == ("answer_left_out", "warning", 3)


def test_a_tenth_is_held_out_from_a_hundred_rows_on(work_dir_of: MakeWorkDir) -> None:
    few, many = report_on(work_dir_of(tiny.chat_rows(99))), report_on(work_dir_of(tiny.chat_rows(400)))

    assert (few.resolved.holdout, few.training.rows.held_out, few.validation_set) == (0.0, 0, None)
    assert many.resolved.holdout == 0.1
    assert many.training.rows.used + many.training.rows.held_out == 400
    assert 20 <= many.training.rows.held_out <= 60
    assert many.validation_set is not None
    assert many.validation_set.rows == many.training.rows.held_out


def test_rows_that_are_added_move_none_and_equal_rows_stay_together(work_dir_of: MakeWorkDir) -> None:
    rows = tiny.chat_rows(60)
    before, after = work_dir_of(rows, holdout=0.3), work_dir_of([*rows, *tiny.chat_rows(90)], holdout=0.3)
    report_on(before)
    report = report_on(after)

    assert {number for number in held_out(after) if number <= 60} == held_out(before)
    # The first 60 of those that were added are the same rows once more.
    assert {number - 60 for number in held_out(after) if 60 < number <= 120} == held_out(before)
    assert [(one.name, one.exact) for one in report.overlaps] == [("holdout", 0)]


def test_with_a_validation_file_nothing_is_held_out(work_dir_of: MakeWorkDir) -> None:
    report = report_on(work_dir_of(tiny.chat_rows(200), validation=tiny.chat_rows(210)[200:]))

    assert (report.resolved.holdout, report.training.rows.used) == (0.0, 200)
    assert report.validation is not None
    assert report.validation.rows.used == 10
    assert [(one.name, one.exact, one.near) for one in report.overlaps] == [("validation_file", 0, 0)]


def test_what_is_counted_adds_up(work_dir_of: MakeWorkDir) -> None:
    rows = tiny.jsonl(tiny.chat_rows(20)) + b"nonsense\n" + tiny.jsonl([{"messages": []}])
    work_dir = work_dir_of(rows)
    report = report_on(work_dir)

    made = rows_in(work_dir / "train.arrow")
    training = report.training
    assert (training.rows.total, training.rows.used, training.rows.refused) == (22, 20, 2)
    assert training.tokens == sum(len(row["input_ids"]) for row in made)
    assert training.trained_tokens == sum(label != IGNORED for row in made for label in row["labels"])
    assert training.trained_share == round(training.trained_tokens / training.tokens, 4)
    assert training.lengths is not None
    lengths = sorted(len(row["input_ids"]) for row in made)
    assert (training.lengths.min, training.lengths.p50, training.lengths.max) == (lengths[0], lengths[9], lengths[-1])
    assert training.lengths.mean == round(sum(lengths) / 20, 2)
    for one in training.lengths.histogram:
        assert one.rows == sum(one.above < length <= one.upto for length in lengths)
    assert [(one.code, one.rows) for one in report.findings if one.severity == "error"] == [
        ("not_json", 1),
        ("no_answer", 1),
    ]
    assert [(one.code, one.file) for one in report.refusals] == [
        ("not_json", "training_file"),
        ("no_answer", "training_file"),
    ]


def test_what_is_cut_is_said_by_what_is_lost(work_dir_of: MakeWorkDir) -> None:
    long_answer = {"messages": [{"role": "user", "content": "box"}, {"role": "assistant", "content": "red " * 60}]}
    long_prompt = {"messages": [{"role": "user", "content": "box " * 60}, {"role": "assistant", "content": "red"}]}

    report = report_on(work_dir_of([*tiny.chat_rows(3), long_answer, long_prompt], max_length=40, truncate=True))

    cut = report.training.truncated
    assert (cut.rows, cut.trained_tokens > 0, cut.prompt_tokens > 0) == (1, True, True)
    assert [(one.code, one.first[0].line) for one in report.findings] == [("nothing_trained", 5), ("truncated", 4)]
    assert report.training.lengths is not None
    assert all(one.upto <= 400 for one in report.training.lengths.histogram)


def test_the_operators_thresholds_refuse(work_dir_of: MakeWorkDir) -> None:
    rows = [*tiny.chat_rows(9), tiny.chat_rows(1)[0]]

    allowed = report_on(work_dir_of(rows, policy={"refuse_above": {"duplicate": 0.1}}))
    refused = report_on(work_dir_of(rows, policy={"refuse_above": {"duplicate": 0.09}}))

    assert allowed.refusals == []
    assert [one.code for one in refused.refusals] == ["duplicate"]
    assert refused.refusals[0].message.startswith("10.0 % of the rows have duplicate, and this server allows 9 %")


def test_a_file_of_which_nothing_is_learnt_is_refused_whatever_is_allowed(work_dir_of: MakeWorkDir) -> None:
    row = tiny.chat_rows(1)[0]
    untrained = {"messages": [row["messages"][0], {**row["messages"][1], "weight": 0}]}

    report = report_on(work_dir_of([untrained], policy={"refuse_above": {"no_answer": 1.0}}))

    assert report.training.trained_share == 0
    assert report.refusals
    assert report.train_set is None


def test_questions_of_a_benchmark_are_found_among_the_rows(work_dir_of: MakeWorkDir, tmp_path: Path) -> None:
    questions = tmp_path / "benchmarks"
    questions.mkdir()
    (questions / "boxes.csv").write_text("question,answer\nWhat colour is box 3? Tell me. Tell me. Tell me.,Red.\n")
    (questions / "broken.jsonl").write_text("nonsense\n")

    report = report_on(work_dir_of(tiny.chat_rows(8), policy={"benchmarks": str(questions)}))

    assert ("boxes", 1) in [(one.name, one.exact) for one in report.overlaps]
    (found,) = [one for one in report.findings if one.code == "benchmark_overlap"]
    assert [where.line for where in found.first] == [4]
    assert any("broken" in note for note in report.notes)


def test_a_set_that_is_known_is_not_made_again(work_dir_of: MakeWorkDir) -> None:
    rows = tiny.chat_rows(12)
    first = report_on(work_dir_of(rows))
    again, other = work_dir_of(rows), work_dir_of(rows, max_length=64)
    for work_dir in (again, other):
        (work_dir / "known.json").write_text(json.dumps({first.key: first.model_dump(mode="json")}))

    assert report_on(again) == first
    assert not (again / "train.arrow").exists()
    assert report_on(other).key != first.key
    assert (other / "train.arrow").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"train_on": "all"},
        {"truncate": True},
        {"holdout": 0.2},
        {"packing": True},
        {"method": "continued_pretraining"},
        {"policy": {"refuse_above": {"secret": 0.5}}},
        {"validation": tiny.chat_rows(2)},
        {"rows": tiny.chat_rows(13)},
    ],
)
def test_everything_that_changes_a_report_changes_its_key(work_dir_of: MakeWorkDir, change: dict[str, Any]) -> None:
    rows = tiny.chat_rows(12)
    assert report_on(work_dir_of(**({"rows": rows} | change))).key != report_on(work_dir_of(rows)).key


def test_another_template_of_the_base_is_another_report(work_dir_of: MakeWorkDir, bases: Path, tmp_path: Path) -> None:
    template = bases / "tiny" / "chat_template.jinja"
    stock = template.read_text()
    rows = tiny.chat_rows(5)
    before = report_on(work_dir_of(rows))
    try:
        template.write_text(stock.replace("user", "user") + "{# another #}")
        assert report_on(work_dir_of(rows)).key != before.key
    finally:
        template.write_text(stock)


def test_preferences_are_counted_with_both_answers(work_dir_of: MakeWorkDir) -> None:
    pairs = [{"prompt": f"box {index}:", "chosen": " red", "rejected": " blue or so"} for index in range(4)]
    work_dir = work_dir_of(pairs, method="dpo")
    report = report_on(work_dir)

    rows = rows_in(work_dir / "train.arrow")
    assert report.training.tokens == sum(len(row["input_ids"]) + len(row["rejected_input_ids"]) for row in rows)
    assert report.training.lengths is not None
    assert report.training.lengths.max == max(len(row["rejected_input_ids"]) for row in rows)


def test_wanted_answers_are_counted(work_dir_of: MakeWorkDir) -> None:
    rows = [{"prompt": f"box {index}:", "completion": " red", "label": index % 3 == 0} for index in range(10)]
    train_set = report_on(work_dir_of(rows, method="kto")).train_set
    assert train_set is not None
    assert train_set.wanted == 4


def test_of_other_rows_none_is_wanted_or_not(work_dir_of: MakeWorkDir) -> None:
    train_set = report_on(work_dir_of(tiny.chat_rows(4))).train_set
    assert train_set is not None
    assert train_set.wanted is None
