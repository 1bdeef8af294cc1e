"""Training rows that stand in the validation file or ask what a benchmark asks."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.files.digests import row_digest
from app.files.findings import Code, Finding, Place
from app.files.rows import ChatMessage, ChatRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow
from worker.training import overlap
from worker.training.near import THRESHOLD, NearIndex
from worker.training.overlap import BenchmarkOverlap, Question, ValidationOverlap, near_share, questions_of
from worker.training.passages import WINDOW, Passages
from worker.training.shingles import jaccard, normalised, shingles

QUESTION = (
    "A baker sells forty loaves of rye bread on Monday and half as many on Tuesday. How many loaves does he sell"
    " on the two days together, if nobody brings any of them back?"
)
ANSWER = "On Tuesday he sells 40 / 2 = 20 loaves, so on both days he sells 40 + 20 = 60 loaves."
NEARLY = QUESTION.replace("forty", "fifty")
CHINESE = (
    "一位面包师星期一卖出四十个黑麦面包,星期二只卖出一半。如果没有人退货,那么他两天一共卖出多少个面包?请写出计算过程。"
)


def chat(question: str = QUESTION, answer: str = ANSWER, system: str | None = None) -> ChatRow:
    begin = [] if system is None else [ChatMessage("system", system)]
    return ChatRow([*begin, ChatMessage("user", question), ChatMessage("assistant", answer)])


def words(seed: int, count: int = 60) -> str:
    draw = random.Random(seed)  # noqa: S311  no key
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(count))


def in_validation(row: Row, *rows: Row, share: float = 1.0) -> Finding | None:
    known = ValidationOverlap([(Place(number, 10 * number), one) for number, one in enumerate(rows, 1)], share=share)
    match = known.find(Place(5, 5), row, row_digest(row))
    return match and match.finding


def in_benchmark(row: Row, *questions: str, share: float = 1.0) -> Finding | None:
    known = BenchmarkOverlap([Question("bread", Place(n, n), text) for n, text in enumerate(questions, 1)], share=share)
    match = known.find(Place(5, 5), row, row_digest(row))
    return match and match.finding


def test_a_row_of_the_validation_file_is_named_by_its_place_there() -> None:
    finding = in_validation(chat(), TextRow("x"), chat())
    assert finding is not None
    assert (finding.code, finding.row, finding.other) == (Code.VALIDATION_OVERLAP, 5, 2)
    assert finding.message.startswith("the same row as line 20 of the validation file.")


@pytest.mark.parametrize(
    "row",
    [
        chat(NEARLY),
        chat(QUESTION.upper().replace(" ", "  ")),
        chat(system="You are a patient teacher of arithmetic, and explain each step."),
        PromptRow(QUESTION, ANSWER),
        PromptRow([ChatMessage("user", NEARLY)], [ChatMessage("assistant", ANSWER)]),
        TextRow(f"{QUESTION} {ANSWER}"),
        UnpairedRow(QUESTION, ANSWER, label=True),
    ],
)
def test_a_row_that_is_nearly_one_says_how_nearly(row: Row) -> None:
    finding = in_validation(row, chat(words(1)), chat())
    assert finding is not None
    assert finding.other == 2
    assert finding.message.startswith("nearly line 20 of the validation file (")
    alike = float(finding.message.partition("(")[2].partition(" ")[0])
    assert THRESHOLD <= alike <= 1


@pytest.mark.parametrize(
    "row",
    [
        chat(answer="He does not sell anything, because bakeries are closed on both of these days in his country."),
        chat("What is the capital of France?", "Paris."),
        chat(words(2), words(3)),
        TextRow(""),
        PreferenceRow(QUESTION, words(4), words(5)),
    ],
)
def test_another_answer_or_another_question_makes_another_row(row: Row) -> None:
    assert in_validation(row, chat(), chat(words(1))) is None


def test_rows_that_share_a_template_alone_are_not_alike() -> None:
    template = " ".join(words(seed) for seed in range(3)) + " Review: "
    rows = [chat(template + words(seed, 20), "good") for seed in range(100, 130)]
    assert in_validation(chat(template + words(99, 20), "good"), *rows) is None
    finding = in_validation(chat(template + words(110, 20) + " very", "good"), *rows)
    assert finding is not None
    assert finding.other == 11


def test_a_match_says_whether_it_is_exact_and_of_which_benchmark() -> None:
    validation = ValidationOverlap([(Place(1, 1), chat())], held_out=True)
    benchmark = BenchmarkOverlap([Question("bread", Place(1, 1), QUESTION), Question("rye", Place(1, 1), words(1))])
    for row, exact in ((chat(), True), (chat(NEARLY), False)):
        match = validation.find(Place(5, 5), row, row_digest(row))
        assert match is not None
        assert (match.exact, match.other) == (exact, "")
        assert "line 1, which is held out" in match.finding.message
        match = benchmark.find(Place(5, 5), row, row_digest(row))
        assert match is not None
        assert (match.exact, match.other) == (exact, "bread")


def test_short_rows_are_only_ever_the_same() -> None:
    assert in_validation(PromptRow("2 + 3 = X?", "5"), PromptRow("2 + 3 = x?", "5")) is None
    assert in_validation(PromptRow("2 + 3?", "5"), PromptRow("2 + 3?", "5")) is not None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (chat(answer="60"), "asks the question of line 2 of the benchmark bread."),
        (chat(QUESTION.upper(), "60", system="Be short."), "asks the question of line 2"),
        (PromptRow(QUESTION, "60"), "asks the question of line 2"),
        (chat(f"Solve this step by step.\n\n{QUESTION}\nShow your work.", "60"), "has the question of line 2 of"),
        (chat(words(1), f"Here is one: {QUESTION}"), "has the question of line 2 of"),
        (TextRow(f"{words(1, 900)} {QUESTION} {words(2, 900)}"), "has the question of line 2 of"),
        (chat(NEARLY, "75"), "nearly asks the question of line 2 of the benchmark bread (0."),
    ],
)
def test_a_row_that_has_a_benchmarks_question_names_both(row: Row, says: str) -> None:
    finding = in_benchmark(row, words(7), QUESTION)
    assert finding is not None
    assert (finding.code, finding.row, finding.other) == (Code.BENCHMARK_OVERLAP, 5, 2)
    assert finding.message.startswith(says)


@pytest.mark.parametrize(
    "row",
    [chat(words(1), words(2)), chat("What is bread?", QUESTION[:60]), TextRow(QUESTION[: WINDOW + 20]), TextRow("")],
)
def test_a_part_of_a_question_is_not_the_question(row: Row) -> None:
    assert in_benchmark(row, QUESTION, "", "What is it?") is None


def test_alike_means_at_least_four_fifths() -> None:
    changed = QUESTION.replace("forty", "ninety").replace("rye", "oat")
    assert in_benchmark(chat(changed, "75"), QUESTION) is not None  # 0.83
    assert in_benchmark(chat(changed.replace("Monday", "Sunday"), "75"), QUESTION) is None  # 0.77


def test_texts_without_spaces_are_compared_as_well() -> None:
    finding = in_benchmark(chat(CHINESE.replace("四十", "五十"), "75"), QUESTION, CHINESE)
    assert finding is not None
    assert finding.other == 2
    assert "nearly asks" in finding.message
    assert (
        in_benchmark(
            chat("法国的首都是哪里?请用一句话回答,不要解释,也不要写别的内容,只写城市的名字。", "巴黎"), CHINESE
        )
        is None
    )


def test_what_is_found_is_what_comparing_all_pairs_finds() -> None:
    texts = [words(seed, 40) for seed in range(60)]
    index = NearIndex(texts)
    draw = random.Random(3)  # noqa: S311  no key
    alike = 0
    for text in texts:
        changed = text.split()
        for _ in range(draw.randint(0, 5)):
            changed[draw.randrange(len(changed))] = "other"
        asked = " ".join(changed)
        pairs = {number: jaccard(shingles(asked), shingles(one)) for number, one in enumerate(texts)}
        best = max(pairs, key=pairs.__getitem__)
        alike += pairs[best] >= THRESHOLD
        assert index.nearest(asked) == ((best, pairs[best]) if pairs[best] >= THRESHOLD else None)
    assert 20 < alike < 60


def test_of_a_share_some_rows_are_looked_at_for_near_matches_and_all_for_exact_ones() -> None:
    rows = [chat(words(seed), words(seed + 1000)) for seed in range(200)]
    known = ValidationOverlap([(Place(1, 1), chat(words(0), words(1000)))], share=0.3)
    assert known.limits() == (
        "Near matches were looked for in 30% of the training rows, with 1 of 1 validation rows, drawn by hash; exact"
        " ones in all."
    )
    nearly = [chat(words(0), words(1000), system=str(number)) for number in range(200)]
    found = [known.find(Place(1, 1), row, row_digest(row)) for row in nearly]
    assert 30 < sum(finding is not None for finding in found) < 90
    assert in_validation(rows[0], rows[0], share=0.0) is not None


def test_of_more_validation_rows_than_are_indexed_a_sample_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_INDEXED", 20)
    rows = [chat(words(seed)) for seed in range(50)]
    known = ValidationOverlap((Place(number, None), row) for number, row in enumerate(rows, 1))
    assert known.limits() == (
        "Near matches were looked for in all training rows, with 20 of 50 validation rows, drawn by hash; exact ones"
        " in all."
    )
    assert all(known.find(Place(1, 1), row, row_digest(row)) for row in rows)
    nearly = [chat(words(seed), system="Be short.") for seed in range(50)]
    assert sum(known.find(Place(1, 1), row, row_digest(row)) is not None for row in nearly) == 20


def test_nothing_is_said_of_limits_that_were_not_reached() -> None:
    assert ValidationOverlap([(Place(1, 1), chat())]).limits() is None
    assert BenchmarkOverlap([]).limits() is None
    assert near_share(0) == near_share(1_000_000) == 1.0
    assert near_share(10 * overlap.NEAR_CHARACTERS) == pytest.approx(0.1)


def test_a_benchmark_is_any_file_that_can_be_trained_on(tmp_path: Path) -> None:
    bread, broken, gone = tmp_path / "bread.jsonl", tmp_path / "broken.jsonl", tmp_path / "gone.jsonl"
    rows = [{"prompt": QUESTION, "completion": "60"}, {"prompt": "What is rye?", "completion": "A cereal."}]
    bread.write_text("\n\n".join(map(json.dumps, rows)))
    broken.write_text(json.dumps(rows[0]) + "\nhello\n")
    questions, warnings = questions_of([bread, broken, gone])
    assert questions == [
        Question("bread", Place(1, 1), QUESTION),
        Question("bread", Place(2, 3), "What is rye?"),
    ]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "The benchmark broken is not compared with",
        "The benchmark gone is not compared with",
    ]


LETTERS = st.text(st.sampled_from("ab c1é世\U0001f600"), max_size=400)


@given(st.lists(LETTERS, max_size=5), LETTERS)
@settings(max_examples=100, deadline=None)
def test_a_passage_is_found_exactly_where_python_finds_it(texts: list[str], around: str) -> None:
    index = Passages(texts)
    for text in [around, *texts, *(around + text + around for text in texts)]:
        within = [one for one in texts if len(one) >= WINDOW and one in text]
        number = index.within(text)
        assert (number is not None) == bool(within)
        assert number is None or texts[number] in within


@given(LETTERS, LETTERS)
@settings(max_examples=100, deadline=None)
def test_likeness_is_that_of_the_sets_of_pieces(one: str, other: str) -> None:
    def pieces(text: str) -> set[str]:
        return {text[start : start + 5] for start in range(len(text) - 4)}

    one, other = normalised(one), normalised(other)
    together = pieces(one) | pieces(other)
    expected = len(pieces(one) & pieces(other)) / len(together) if together else 0.0
    assert jaccard(shingles(one), shingles(other)) == pytest.approx(expected)
