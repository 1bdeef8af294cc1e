"""Graders: what they make of a sample, what is flagged in the answer, and what is refused before."""

import asyncio
import json
import math
import random
import time
from contextlib import suppress
from typing import Any

import pytest
from anyio import to_thread
from httpx import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError
from openai.types.graders import TextSimilarityGraderParam
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer
from starlette.testclient import TestClient

from app.graders import formula, metrics, templates
from app.graders.failures import NotGraded
from app.graders.run import Grade, grade
from app.graders.schemas import GraderRun, GraderValidate
from app.http import invalid_request
from app.jobs.parts import SpecPart
from app.main import create_app
from tests.stock import stock

URL = "/v1/fine_tuning/alpha/graders"
FOX = "the quick brown fox jumps over the lazy dog"
DOG = "the quick brown dog jumps on the log"


def check(**fields: Any) -> dict[str, Any]:
    check = {"type": "string_check", "name": "same", "operation": "eq"}
    return check | {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"} | fields


def likeness(metric: str, **fields: Any) -> dict[str, Any]:
    likeness = {"type": "text_similarity", "name": "alike", "evaluation_metric": metric}
    return likeness | {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"} | fields


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "calculate_output": formula, "graders": graders or {"a": check()}}


def graded(grader: Any, sample: str, **item: Any) -> Grade:
    return grade(GraderValidate(grader=grader).grader, sample, item)


def reward(grader: Any, sample: str, **item: Any) -> float:
    answer = graded(grader, sample, **item)
    assert not answer.flags, answer
    return answer.reward


def refusal(body: Any, part: type[SpecPart] = GraderValidate) -> tuple[str | None, str]:
    """Param and message, as the API answers them."""
    with pytest.raises(ValidationError) as caught:
        part.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    refused = invalid_request(errors, body)
    return refused.param, refused.message


def run(client: TestClient, **body: Any) -> Any:
    return client.post(f"{URL}/run", json=body)


def flags(answer: Any) -> set[str]:
    return {name for name, value in answer["metadata"]["errors"].items() if value}


def test_the_stock_client_validates_and_runs_graders(client: TestClient) -> None:
    graders = stock(client).fine_tuning.alpha.graders
    grader = TextSimilarityGraderParam(
        type="text_similarity",
        name="alike",
        evaluation_metric="rouge_l",
        input="{{sample.output_text}}",
        reference="{{item.answer}}",
    )
    validated = graders.validate(grader=grader).grader
    assert validated is not None
    assert validated.to_dict() == dict(grader)
    answer = graders.run(grader=grader, model_sample="yes", item={"answer": "yes"})
    assert (answer.reward, answer.metadata.type, answer.sub_rewards) == (1.0, "text_similarity", {})
    assert answer.metadata.errors.api_model_grader_parse_error is False
    with pytest.raises(BadRequestError) as refused:
        graders.validate(grader={**grader, "evaluation_metric": "cosine"})
    assert refused.value.param == "grader.evaluation_metric"


def test_a_valid_grader_comes_back_as_it_was_sent(client: TestClient) -> None:
    for grader in (
        check(),
        likeness("bleu"),
        multi("a", a=check()),
        multi("max(a, b) / 2", a=check(), b=likeness("gleu")),
    ):
        response = client.post(f"{URL}/validate", json={"grader": grader})
        assert (response.status_code, response.json()) == (200, {"grader": grader})


@pytest.mark.parametrize(
    ("operation", "sample", "expected"),
    [
        ("eq", "Yes", 1),
        ("eq", "yes", 0),
        ("ne", "yes", 1),
        ("ne", "Yes", 0),
        ("like", "Well, Yes.", 1),
        ("like", "Well, yes.", 0),
        ("ilike", "Well, YES.", 1),
        ("ilike", "No", 0),
    ],
)
def test_strings_are_checked(operation: str, sample: str, expected: float) -> None:
    assert reward(check(operation=operation), sample, answer="Yes") == expected


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in "12345l")])
def test_every_metric_goes_from_0_to_1(metric: str) -> None:
    assert reward(likeness(metric), FOX, answer=FOX) == pytest.approx(1)
    assert reward(likeness(metric), "xyz", answer="abc") == 0
    assert reward(likeness(metric), "", answer="abc") == 0
    assert 0 <= reward(likeness(metric), DOG, answer=FOX) < 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("fuzzy_match", 2 * 33 / (43 + 36)),  # letters that they have in the same order
        ("gleu", (6 + 2 + 1 + 0) / (9 + 8 + 7 + 6)),  # of the longer text's n-grams
        ("rouge_1", 2 * 6 / 17),
        ("rouge_2", 2 * 2 / 15),
        ("rouge_3", 2 * 1 / 13),
        ("rouge_4", 0),
        ("rouge_l", 2 * 5 / 17),
    ],
)
def test_a_metric_has_its_published_value(metric: str, expected: float) -> None:
    assert reward(likeness(metric), DOG, answer=FOX) == pytest.approx(expected, abs=1e-4)


@given(*[st.lists(st.sampled_from(["a", "b", "C", "d.", "né", ""]), max_size=12).map(" ".join)] * 2)
def test_rouge_l_is_rouge_scores(text: str, reference: str) -> None:
    theirs = RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    assert metrics.similarity("rouge_l", text, reference) == pytest.approx(theirs)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"])
def test_the_longest_texts_are_graded_in_seconds(metric: str) -> None:
    """By ten graders at once, in the letters that are the slowest to compare and in the shortest words."""
    half = metrics.MAX_CHARACTERS // 2
    chance = random.Random(1)  # noqa: S311  no secret
    letters = [chr(chance.randrange(0x4E00, 0x9E00)) for _ in range(2 * half)]
    grader = multi("a0", **{f"a{number}": likeness(metric) for number in range(10)})
    for text, answer in (
        ("".join(letters[:half]), "".join(letters[half:])),
        ("a b c d e " * (half // 10), "a c b d f " * (half // 10)),
        (".," * (half // 2), ",." * (half // 2)),
    ):
        began = time.monotonic()
        assert reward(grader, text, answer=answer) <= 1
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"])
def test_longer_texts_are_flagged(metric: str) -> None:
    answer = graded(likeness(metric), "x" * metrics.MAX_CHARACTERS, answer="y")
    assert (answer.reward, set(answer.flags)) == (0, {"other_error"})
    assert str(metrics.MAX_CHARACTERS) in (answer.message or "")


def test_graders_that_compute_leave_the_threads_to_other_requests(key: str) -> None:
    """Runs that wait for their turn hold none, so a plain question is answered before most of them."""
    text = ".," * (metrics.MAX_CHARACTERS // 4)
    grader = multi("a + b", a=likeness("bleu"), b=likeness("bleu"))
    body = {"grader": grader, "model_sample": text, "item": {"answer": text[::-1]}}
    done: list[str] = []

    async def ask(api: AsyncClient, method: str, path: str, **sent: Any) -> None:
        assert (await api.request(method, path, **sent)).status_code == 200
        done.append(path)

    async def ask_all() -> None:
        to_thread.current_default_thread_limiter().total_tokens = 4
        transport = ASGITransport(create_app())
        headers = {"Authorization": f"Bearer {key}"}
        async with AsyncClient(transport=transport, base_url="http://tests", headers=headers, timeout=60) as api:
            await ask(api, "POST", f"{URL}/run", json=body)
            runs = [asyncio.create_task(ask(api, "POST", f"{URL}/run", json=body)) for _ in range(8)]
            await asyncio.sleep(0)
            await asyncio.gather(ask(api, "GET", "/v1/files"), *runs)

    asyncio.run(ask_all())
    assert len(done) == 10
    assert done.index("/v1/files") < 5


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{item.x}}", "text"),
        ("<{{ item.x }}|{{item.x}}>", "<text|text>"),
        ("{{item.deep.list[1].name}}", "b"),
        ("{{item.deep.list}}", '[1, {"name": "b"}]'),
        ("{{item.number}} {{item.nothing}} {{item.yes}}", "1.5 null true"),
        ("{{item.with-dash}}", "é"),
        ("{{sample.output_text}}", '{"a": ["x", {}]}'),
        ("{{sample.output_json}}{{sample.output_json.a[0]}}", '{"a": ["x", {}]}x'),
        ('{"a": {"b": {}}} }} {', '{"a": {"b": {}}} }} {'),
        ("{{item.braces}}", "{{item.x}}"),  # what is put in is not looked into again
    ],
)
def test_a_template_is_filled_in(template: str, expected: str) -> None:
    item = {
        "x": "text",
        "deep": {"list": [1, {"name": "b"}]},
        "number": 1.5,
        "nothing": None,
        "yes": True,
        "with-dash": "é",
        "braces": "{{item.x}}",
    }
    assert templates.fill(template, item=item, sample='{"a": ["x", {}]}') == expected
    assert reward(check(input=template, reference="{{item.want}}"), '{"a": ["x", {}]}', **item, want=expected)


@pytest.mark.parametrize(
    ("template", "flagged", "says"),
    [
        ("{{item.y}}", {"invalid_variable_error"}, "'item.y'"),
        ("{{item.x.y}}", {"invalid_variable_error"}, "'item.x.y'"),
        ("{{item.list[2]}}", {"invalid_variable_error"}, "'item.list[2]'"),
        ("{{item.list.a}}", {"invalid_variable_error"}, "'item.list.a'"),
        ("{{item.x[0]}}", {"invalid_variable_error"}, "'item.x[0]'"),
        ("{{sample.output_json.a}}", {"invalid_variable_error", "sample_parse_error"}, "no JSON"),
        ("{{item.long}}" * 3, {"other_error"}, "100000"),
    ],
)
def test_what_cannot_be_filled_in_is_flagged(template: str, flagged: set[str], says: str) -> None:
    answer = graded(check(operation="ne", input=template), "{", x="a", answer="b", list=[1, 2], long="x" * 40_000)
    assert (answer.reward, set(answer.flags)) == (0, flagged)
    assert says in (answer.message or "")


def test_a_sample_nested_without_end_is_no_json() -> None:
    answer = graded(check(input="{{sample.output_json.a}}"), "[" * 90_000, answer="")
    assert "sample_parse_error" in answer.flags


def test_a_sample_is_parsed_once_for_all_paths_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has room for thousands of paths and for a sample that takes a millisecond to parse."""
    loads, parsed = json.loads, list[str]()

    def counted(text: str) -> Any:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    sample = json.dumps({"x": "a", "y": [["b"]] * 5_000})
    assert templates.fill("{{sample.output_json.x}}" * 1_000, item={}, sample=sample) == "a" * 1_000
    assert len(parsed) == 1


def test_an_item_may_be_left_out(client: TestClient) -> None:
    body = {"grader": check(reference="yes"), "model_sample": "yes"}
    for sent in (body, {**body, "item": None}):
        assert client.post(f"{URL}/run", json=sent).json()["reward"] == 1


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{item.x", "not closed"),
        ("{{item.x}} {{", "not closed"),
        ("{{}}", "no variable"),
        ("{{item.x + 1}}", "no variable"),
        ("{{item['x']}}", "no variable"),
        ("{{item.x|upper}}", "no variable"),
        ("{{item}}", "names no variable"),
        ("{{item[0]}}", "names no variable"),
        ("{{env.SECRET}}", "Unknown namespace 'env'"),
        ("{{sample.output_tools}}", "output_text"),
        ("{{sample.output_text.x}}", "output_text"),
        ("{{item." + "x" * 300 + "}}", "no variable"),
        ("x" * 100_001, "100000"),
    ],
)
def test_a_bad_template_is_refused(template: str, says: str) -> None:
    for where in ("input", "reference"):
        param, message = refusal({"grader": check(**{where: template})})
        assert param == f"grader.{where}"
        assert says in message
        param, _ = refusal({"grader": multi("a", a=likeness("bleu", **{where: template}))})
        assert param == f"grader.graders.a.{where}"


@given(st.text("{}.[]items ample0", max_size=60))
def test_any_template_is_filled_in_or_refused(template: str) -> None:
    try:
        templates.check(template)
    except templates.BadTemplate:
        return
    with suppress(NotGraded):
        templates.fill(template, item={}, sample="")


@pytest.mark.parametrize(
    ("grader", "param", "says"),
    [
        (check(operation="equals"), "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        (check(operatoin="eq"), "grader.operatoin", "Did you mean 'operation'?"),
        (check(name=""), "grader.name", "at least 1"),
        (check(input=None), "grader.input", "string"),
        ({key: value for key, value in check().items() if key != "reference"}, "grader.reference", "required"),
        (likeness("cosine"), "grader.evaluation_metric", "no embedding model"),
        (likeness("meteor"), "grader.evaluation_metric", "word lists"),
        (likeness("rouge_6"), "grader.evaluation_metric", "rouge_l"),
        ({"type": "python", "name": "p", "source": "x"}, "grader.type", "no code of callers"),
        ({"type": "score_model", "name": "p", "model": "x", "input": []}, "grader.type", "no model here"),
        ({"type": "label_model", "name": "p"}, "grader.type", "no model here"),
        ({"type": "string_chek"}, "grader.type", "Did you mean 'string_check'?"),
        ({"type": 7}, "grader.type", "Unknown grader type"),
        ({"name": "x"}, "grader.type", ""),
        ({}, "grader.type", ""),
        ("eq", "grader", ""),
        (None, "grader", ""),
        (multi("a", a=check(operation="is")), "grader.graders.a.operation", "'ilike'"),
        (multi("a", a=multi("b", b=check())), "grader.graders.a.type", "no multi grader in it"),
        (multi("a", a={"type": "python"}), "grader.graders.a.type", "no code of callers"),
        (multi("a", **{"a b": check()}), "grader.graders.a b", ""),
        (multi("max", max=check()), "grader.graders", "function"),
        ({**multi("a"), "graders": {}}, "grader.graders", "at least 1"),
    ],
)
def test_a_grader_is_refused_by_the_field_that_is_wrong(grader: Any, param: str, says: str) -> None:
    named, message = refusal({"grader": grader})
    assert (named, says in message) == (param, True), message


def test_what_a_run_is_given_is_checked(client: TestClient) -> None:
    given = {"grader": check(), "model_sample": "x"}
    assert refusal({"grader": check()}, GraderRun)[0] == "model_sample"
    assert refusal({**given, "item": "x"}, GraderRun)[0] == "item"
    assert "Did you mean 'item'?" in refusal({**given, "items": {}}, GraderRun)[1]
    assert refusal({**given, "model_sample": "x" * 100_001}, GraderRun)[0] == "model_sample"
    wrong = run(client, **given | {"grader": check(operation="is")})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "grader.operation")
    assert run(client, **given, item={"x": "x" * 300_000}).status_code == 413
    for path in ("validate", "run"):
        assert client.post(f"{URL}/{path}", json=given, headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0.8 * a + 0.2 * b", 0.85),
        ("(a + b) / 2", 0.625),
        ("-a + +1", 0),
        ("min(a, b, 2) - max(a)", -0.75),
        ("floor(b) + ceil(b) + abs(-1)", 2),
        ("exp(log(4)) - sqrt(4)", 2),
        (" 1e3 ", 1000),
    ],
)
def test_a_formula_makes_one_reward_of_several(written: str, expected: float) -> None:
    grader = multi(written, a=check(), b=likeness("fuzzy_match", reference="yexx"))
    answer = graded(grader, "yes!", answer="yes!")
    b = answer.sub_rewards["b"]
    assert answer.sub_rewards == {"a": 1.0, "b": b}
    assert formula.calculate(written, {"a": 1.0, "b": 0.25}) == pytest.approx(expected)
    assert answer.reward == pytest.approx(formula.calculate(written, {"a": 1.0, "b": b}))


@pytest.mark.parametrize("written", ["1 / a", "a / (a - a)", "log(a)", "sqrt(a - 1)", "exp(1000)", "1e300 * 1e300"])
def test_a_formula_without_a_value_is_flagged(written: str) -> None:
    answer = graded(multi(written), "no", answer="yes")
    assert (answer.reward, set(answer.flags)) == (0, {"formula_parse_error"})
    assert answer.sub_rewards == {"a": 0}


def test_a_part_that_cannot_be_graded_takes_the_reward_with_it() -> None:
    answer = graded(multi("1 - a + b", a=check(), b=check(reference="yes")), "yes")
    assert (answer.reward, set(answer.flags)) == (0, {"invalid_variable_error"})
    assert answer.sub_rewards == {"a": 0, "b": 1}
    assert answer.message == "a: There is no 'item.answer' to fill in."


def test_what_went_wrong_is_an_answer_and_no_http_error(client: TestClient) -> None:
    both = multi("a / b", a=check(), b=check(operation="ne"))
    for item, flagged, says in (
        ({"answer": "yes"}, {"formula_parse_error"}, "divides by zero"),
        ({}, {"invalid_variable_error"}, "item.answer"),
    ):
        answer = run(client, grader=both, model_sample="yes", item=item).json()
        assert (answer["reward"], flags(answer)) == (0, flagged)
        assert says in answer["metadata"]["error_message"]


def test_the_one_grader_of_the_clients_types_goes_by_its_name() -> None:
    grader = {**multi("2 * same"), "graders": check()}
    assert reward(grader, "yes", answer="yes") == 2
    assert refusal({"grader": {**grader, "graders": check(operation="is")}})[0] == "grader.graders.operation"


BAD_FORMULAS = [
    ("", "at least 1"),
    ("a +", "no arithmetic expression"),
    ("a; b", "no arithmetic expression"),
    ("c", "There is no grader 'c'"),
    ("max", "There is no grader 'max'"),
    ("a ** 2", "Powers are not offered"),
    ("a ^ 2", "Powers are not offered"),
    ("a // 2", "Only numbers"),
    ("a % 2", "Only numbers"),
    ("a.real", "Only numbers"),
    ("a[0]", "Only numbers"),
    ("a if a else 1", "Only numbers"),
    ("a > 1", "Only numbers"),
    ("'x' * 9", "Only numbers"),
    ("True", "Only numbers"),
    ("1j", "Only numbers"),
    ("pow(a, 2)", "Only numbers"),
    ("__import__('os').system('true')", "Only numbers"),
    ("(lambda: 1)()", "Only numbers"),
    ("[x for x in (1,)]", "Only numbers"),
    ("max(*a)", "Only numbers"),
    ("max(a, key=a)", "Only numbers"),
    ("max()", "one number or more"),
    ("abs(a, 1)", "takes one number"),
    ("9" * 400, "too large"),
    ("1e999", "too large"),
    ("-" * 400 + "1", "nested deeper"),
    ("(" * 240 + "1" + ")" * 240, "no arithmetic expression"),
    ("1" + "+1" * 240, "nested deeper"),
    ("a" + " " * 500, "500"),
]


@pytest.mark.parametrize(("written", "says"), BAD_FORMULAS)
def test_a_formula_is_arithmetic_and_nothing_else(written: str, says: str) -> None:
    param, message = refusal({"grader": multi(written)})
    assert param == "grader.calculate_output"
    assert says in message


@given(st.text("ab01.+-*/(), \tminexplog", max_size=40))
def test_any_formula_comes_to_a_number_or_is_refused(written: str) -> None:
    try:
        formula.check(written, ["a", "b"])
    except formula.BadFormula:
        return
    with suppress(NotGraded):
        assert math.isfinite(formula.calculate(written, {"a": 0.0, "b": 1.0}))


def test_half_a_surrogate_pair_is_graded_or_refused(client: TestClient) -> None:
    """JSON can hold one, UTF-8 cannot."""
    for metric in ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"):
        for sample, answer in (("a", "\\ud800"), ("\\udc00 a", "\\ud800 a")):
            grader = json.dumps(likeness(metric))
            body = f'{{"grader": {grader}, "model_sample": "{sample}", "item": {{"answer": "{answer}"}}}}'
            response = client.post(f"{URL}/run", content=body, headers={"content-type": "application/json"})
            assert response.status_code == (200 if sample == "a" else 400), response.text
