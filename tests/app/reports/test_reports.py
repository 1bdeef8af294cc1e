"""A file before it is trained on: reported on row by row, shown token by token, and prepared once."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests import running, tiny


def made(ask: Callable[[], httpx.Response], seconds: float = 60) -> httpx.Response:
    """The answer once it is no 202, each of which says when to ask again."""
    deadline = time.monotonic() + seconds
    while (response := ask()).status_code == 202:
        assert response.json()["status"] == "in_progress"
        assert int(response.headers["retry-after"]) >= 1
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return response


@pytest.fixture(scope="module")
def api(service: running.Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def upload(api: httpx.Client, content: bytes, name: str = "rows.jsonl") -> str:
    response = api.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, content)})
    return str(response.json()["id"])


def report_on(api: httpx.Client, file_id: str, **asked: Any) -> dict[str, Any]:
    response = made(lambda: api.get(f"/v1/files/{file_id}/report", params={"model": "tiny", **asked}))
    assert response.status_code == 200, response.text
    report: dict[str, Any] = response.json()
    return report


def test_a_report_counts_what_a_job_trains_on(api: httpx.Client, service: running.Service) -> None:
    rows = tiny.chat_rows(30)
    file_id = upload(api, tiny.jsonl([*rows, rows[3]]))

    report = report_on(api, file_id)
    job_id = service.submit(file_id, n_epochs=1, max_steps=1, batch_size=4)
    job = service.finished(job_id)

    assert (report["status"], report["refusals"]) == ("ok", [])
    assert report["training"]["rows"] == {"total": 31, "used": 31, "held_out": 0, "refused": 0}
    (found,) = report["findings"]
    assert (found["code"], found["severity"], found["rows"]) == ("duplicate", "warning", 1)
    assert found["first"] == [{"row": 31, "line": 31, "other": 4}]
    assert sum(one["rows"] for one in report["training"]["lengths"]["histogram"]) == 31
    told = [event.message for event in service.events(job_id)]
    counts = f"31 rows, {report['training']['tokens']} tokens, {report['training']['trained_tokens']} of them trained"
    assert any(counts in message for message in told), told
    assert job.status == "succeeded"


def test_findings_can_be_downloaded_line_by_line(api: httpx.Client) -> None:
    rows = tiny.jsonl(tiny.chat_rows(3))
    file_id = upload(api, rows + b"nonsense\n" + rows)

    asked = {"model": "tiny"}
    report = report_on(api, file_id)
    lines = made(lambda: api.get(f"/v1/files/{file_id}/report/findings", params=asked)).text.splitlines()

    assert report["status"] == "refused"
    assert [(one["file"], one["code"]) for one in report["refusals"]] == [("training_file", "not_json")]
    findings = [json.loads(line) for line in lines]
    assert [(one["code"], one["line"], one.get("other")) for one in findings] == [
        ("not_json", 4, None),
        ("duplicate", 5, 1),
        ("duplicate", 6, 2),
        ("duplicate", 7, 3),
    ]
    assert report["findings_bytes"] == len("\n".join(lines)) + 1


def test_a_preview_shows_each_token_and_whether_it_is_trained(api: httpx.Client) -> None:
    file_id = upload(api, tiny.jsonl(tiny.chat_rows(6)))

    shown = made(lambda: api.post(f"/v1/files/{file_id}/preview", json={"model": "tiny", "rows": [2, 9]})).json()

    row, absent = shown["data"]
    assert (row["row"], row["line"], row["set"], row["problem"]) == (2, 2, "training", None)
    (sequence,) = row["sequences"]
    assert sequence["text"] == (
        "<|im_start|>user\nWhat colour is box 1? Tell me.<|im_end|>\n<|im_start|>assistant\nBox 1 is green.<|im_end|>\n"
    )
    assert "".join(token["text"] for token in sequence["tokens"]) == sequence["text"]
    assert "".join(token["text"] for token in sequence["tokens"] if token["trained"]) == "Box 1 is green.<|im_end|>"
    assert (absent["set"], absent["problem"]) == (None, "The file has 6 rows.")


def test_a_preview_shows_packs_and_why_a_row_is_in_none(api: httpx.Client) -> None:
    short, long = tiny.chat_rows(6), {"messages": [{"role": "user", "content": "box " * 300}, tiny.ANSWER]}
    file_id = upload(api, tiny.jsonl([*short, long]))

    asked = {"model": "tiny", "packing": True, "max_length": 128, "lines": [1, 7]}
    row, refused = made(lambda: api.post(f"/v1/files/{file_id}/preview", json=asked)).json()["data"]

    assert 1 in row["pack"]
    assert len(row["pack"]) > 1
    text = row["sequences"][0]["text"]
    assert text.count("<|im_start|>assistant") == len(row["pack"])
    assert refused["set"] is None
    assert "max_length is 128" in refused["problem"]


def test_a_report_says_which_rows_the_validation_file_has_too(api: httpx.Client) -> None:
    rows = tiny.chat_rows(12)
    training, validation = upload(api, tiny.jsonl(rows)), upload(api, tiny.jsonl(rows[5:7]))

    report = report_on(api, training, validation_file=validation)

    assert report["overlaps"] == [{"name": "validation_file", "exact": 2, "near": 0}]
    (found,) = [one for one in report["findings"] if one["code"] == "validation_overlap"]
    assert [(where["line"], where["other"]) for where in found["first"]] == [(6, 1), (7, 2)]
    assert report["validation"]["rows"]["used"] == 2


@pytest.mark.long
def test_a_second_job_on_the_same_rows_does_not_tokenise_them_again(
    api: httpx.Client, service: running.Service
) -> None:
    file_id = upload(api, tiny.jsonl(tiny.chat_rows(9)))
    jobs = [service.submit(file_id, n_epochs=1, max_steps=1, batch_size=4)]
    assert service.finished(jobs[0]).status == "succeeded"
    jobs.append(service.submit(file_id, n_epochs=1, max_steps=1, batch_size=4))
    assert service.finished(jobs[1]).status == "succeeded"

    with service.database() as database:
        sets = database.execute(
            "SELECT count(*) FROM prepared_sets WHERE training_sha256 = (SELECT sha256 FROM files WHERE id = %s)",
            (file_id,),
        ).fetchone()
        made = database.execute(
            "SELECT count(DISTINCT prepared->'train'->>'sha256') FROM jobs WHERE id = ANY(%s)", (jobs,)
        ).fetchone()
    assert (sets, made) == ((1,), (1,))
    # What was tokenised is left in the folder of the attempt that did it; the second found it known.
    assert [list(service.home.glob(f"work/{job}-prepare/*/train.arrow")) for job in jobs[1:]] == [[]]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"model": "nowhere"}, "model"),
        ({"model": "tiny", "max_length": 4096}, "max_length"),
        ({"model": "tiny", "method": "magic"}, "method"),
        ({"model": "tiny", "mehtod": "dpo"}, "mehtod"),
        ({"model": "tiny", "validation_file": "file-none"}, "file_id"),
    ],
)
def test_what_cannot_be_reported_on_is_refused_by_its_field(
    api: httpx.Client, asked: dict[str, Any], param: str
) -> None:
    file_id = upload(api, tiny.jsonl(tiny.chat_rows(2)))
    response = made(lambda: api.get(f"/v1/files/{file_id}/report", params=asked))
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


def test_a_file_of_another_method_is_refused_with_the_method_that_takes_it(api: httpx.Client) -> None:
    pairs = [{"prompt": f"box {index}", "chosen": " red", "rejected": " blue"} for index in range(3)]
    file_id = upload(api, tiny.jsonl(pairs))

    report = report_on(api, file_id)
    of_dpo = report_on(api, file_id, method="dpo")
    shown = made(lambda: api.post(f"/v1/files/{file_id}/preview", json={"model": "tiny", "method": "dpo"})).json()

    assert report["refusals"][0]["code"] == "wrong_method"
    assert "'dpo'" in report["refusals"][0]["message"]
    assert (of_dpo["status"], of_dpo["training"]["rows"]["used"]) == ("ok", 3)
    assert [one["name"] for one in shown["data"][0]["sequences"]] == ["chosen", "rejected"]
