"""A base model of the hub: planned for before anything of it is here, trained, and named as what it is."""

from typing import Any

import openai
import pytest

from tests import hub, tiny
from tests.running import Service

ASSUMED = {"training_file": None, "assume": {"rows": 50, "tokens": 2000, "longest": 60}}


@pytest.mark.long
def test_a_hub_model_is_planned_for_and_trained_at_the_commit_it_has_now(service: Service) -> None:
    client = service.client()
    plan = client.post("/fine_tuning/plans", body={"model": "acme/tiny", **ASSUMED}, cast_to=object)
    assert isinstance(plan, dict)
    same = client.post("/fine_tuning/plans", body={"model": "tiny", **ASSUMED}, cast_to=object)
    assert isinstance(same, dict)
    assert plan["trainable_params"] == same["trainable_params"]
    assert plan["memory"] == same["memory"]

    numbers: Any = {"max_steps": 2, "batch_size": 4}  # more than the stock client knows
    job = client.fine_tuning.jobs.create(
        model="acme/tiny",
        training_file=service.upload(tiny.chat_rows(8)),
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
    )
    ended = service.finished(job.id)

    assert ended.status == "succeeded", ended.error
    assert ended.plan["trainable_params"] == plan["trainable_params"]
    (row,) = service.results(job.id)
    assert (row["base"]["id"], row["base"]["revision"]) == ("acme/tiny", hub.COMMIT)


def test_a_model_that_the_hub_does_not_have_is_refused_with_what_to_do(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match="Put one into a folder"):
        service.client().post("/fine_tuning/plans", body={"model": "acme/other", **ASSUMED}, cast_to=object)
