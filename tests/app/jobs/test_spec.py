"""What a spec accepts, and how it refuses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.http import invalid_request
from app.jobs.methods import BLOCKS
from app.jobs.spec import JobSpec

HYPER = "method.supervised.hyperparameters"
GRADER = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "a",
    "operation": "eq",
}
GRADER_ = "method.reinforcement.grader"


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "tiny", "training_file": "file-1", **fields})


def hyper(**fields: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": fields}}}


def of(method: str, **hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": method, method: {"hyperparameters": hyperparameters}}}


def graded(grader: Any = GRADER, response_format: Any = None, **hyperparameters: Any) -> dict[str, Any]:
    block = {"grader": grader, "hyperparameters": hyperparameters, "response_format": response_format}
    return {"method": {"type": "reinforcement", "reinforcement": block}}


def of_(method: str) -> str:
    return f"method.{method}.hyperparameters"


def lora(kind: str = "lora", **block: Any) -> dict[str, Any]:
    return {"tuning": {"type": kind, **block}}


def pretraining() -> dict[str, Any]:
    return of("continued_pretraining", embedding_learning_rate=1e-5)


def refusal(body: dict[str, Any]) -> tuple[str | None, str]:
    """Param and message, as the API answers them."""
    whole = {"model": "tiny", "training_file": "file-1", **body}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(whole)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    refused = invalid_request(errors, whole)
    return refused.param, refused.message


def test_absent_tuning_is_lora_and_everything_else_is_auto() -> None:
    asked = spec()
    assert asked.tuning.type == "lora"
    assert asked.hyperparameters.n_epochs == "auto"


def test_a_spec_survives_json() -> None:
    asked = spec(**hyper(n_epochs=2, learning_rate=1e-3), tuning={"type": "qlora", "r": 8}, seed=3)
    assert JobSpec.model_validate_json(asked.model_dump_json()) == asked
    assert JobSpec.model_validate(asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize("method", BLOCKS)
def test_a_method_has_the_block_of_its_name_and_no_other(method: str) -> None:
    asked = spec(**(graded() if method == "reinforcement" else {"method": {"type": method}}))
    assert asked.hyperparameters.learning_rate == "auto"
    assert list(asked.model_dump()["method"]) == ["type", method]
    assert JobSpec.model_validate_json(asked.model_dump_json()) == asked
    assert asked.param("n_epochs") == f"method.{method}.hyperparameters.n_epochs"


def test_old_hyperparameters_are_the_supervised_block() -> None:
    assert spec(hyperparameters={"n_epochs": 2}).hyperparameters.n_epochs == 2
    assert refusal({"hyperparameters": {"n_epochs": 2}, "method": {"type": "supervised"}})[0] == "hyperparameters"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (hyper(n_epochs=0), f"{HYPER}.n_epochs", "greater than or equal to 1"),
        (hyper(n_epochs=1_000_000_000), f"{HYPER}.n_epochs", "less than or equal to 50"),
        (hyper(n_epochs="3"), f"{HYPER}.n_epochs", "integer"),
        (hyper(n_epochs=True), f"{HYPER}.n_epochs", "integer"),
        (hyper(learning_rate=float("nan")), f"{HYPER}.learning_rate", "finite"),
        (hyper(learning_rate=float("inf")), f"{HYPER}.learning_rate", "finite"),
        (hyper(batch_size=10**400), f"{HYPER}.batch_size", "less than or equal"),
        (hyper(n_epoch=1), f"{HYPER}.n_epoch", "Did you mean 'n_epochs'?"),
        ({"modle": "x"}, "modle", "Did you mean 'model'?"),
        ({"status": "succeeded"}, "status", "Unknown field 'status'"),
        ({"trust_remote_code": True}, "trust_remote_code", "Unknown field"),
        (lora(init_lora_weights="eva"), "tuning.init_lora_weights", "Not offered: send true, "),
        (lora(init_lora_weights="pissa_niter_0"), "tuning.init_lora_weights", "with an N from 1 to 99"),
        (lora(init_lora_weights=1), "tuning.init_lora_weights", "Not offered"),
        (lora("qlora", init_lora_weights="pissa"), "tuning.init_lora_weights", "4 bits here. Send type 'lora'"),
        (lora("qlora", init_lora_weights="olora"), "tuning.init_lora_weights", "4 bits here. Send type 'lora'"),
        (lora(init_lora_weights="pissa", use_dora=True), "tuning.init_lora_weights", "does not go with use_dora"),
        (lora(init_lora_weights="loftq"), "tuning.init_lora_weights", "Send type 'qlora'"),
        (lora("qlora", init_lora_weights="loftq", use_dora=True), "tuning.init_lora_weights", "with use_dora"),
        (lora(init_lora_weights="olora", r=257), "tuning.r", "twice as much: send at most 256"),
        (lora(init_lora_weights="pissa", lora_alpha=2049), "tuning.lora_alpha", "send at most 2048"),
        (lora(modules_to_save=["q_proj"], target_modules=["q_proj"]), "tuning.modules_to_save", "in target_modules"),
        (lora(modules_to_save=["a\n"]), "tuning.modules_to_save.0", "pattern"),
        (pretraining(), f"{of_('continued_pretraining')}.embedding_learning_rate", "in tuning.modules_to_save"),
        (
            pretraining() | lora(modules_to_save=["norm"]),
            f"{of_('continued_pretraining')}.embedding_learning_rate",
            "or send tuning.type 'full'",
        ),
        (hyper(embedding_learning_rate=1e-5), f"{HYPER}.embedding_learning_rate", "Unknown field"),
        ({"tuning": {"type": "lora", "loraplus_lr_ratio": 0.5}}, "tuning.loraplus_lr_ratio", "greater than or equal"),
        (hyper(learning_rate_multiplier=5e-324), f"{HYPER}.learning_rate_multiplier", "equal to 0.000001"),
        (hyper(neftune_noise_alpha=0), f"{HYPER}.neftune_noise_alpha", "greater than 0"),
        (hyper(early_stopping_patience=0), f"{HYPER}.early_stopping_patience", "greater than or equal to 1"),
        (
            hyper(early_stopping_patience=2) | {"evaluation": {"holdout": 0}},
            f"{HYPER}.early_stopping_patience",
            "evaluation.holdout is 0. Hold some out, such as 0.1, or send a validation_file.",
        ),
        ({"tuning": {"type": "full", "r": 8}}, "tuning.r", "Unknown field 'r'"),
        ({"tuning": {"type": "lorra"}}, "tuning", "'full', 'lora', 'qlora'"),
        ({"tuning": {"r": 8}}, "tuning.type", "type"),
        ({"tuning": "auto"}, "tuning", "decided when a job is created"),
        (of("dpo", packing=True), f"{of_('dpo')}.packing", "row by row, so they are not packed"),
        (of("dpo", train_on="all"), f"{of_('dpo')}.train_on", "the answers are compared"),
        (of("orpo", neftune_noise_alpha=5.0), f"{of_('orpo')}.neftune_noise_alpha", "supervised training"),
        (of("dpo", loss_type="exo"), f"{of_('dpo')}.loss_type", "'sigmoid'"),
        (of("dpo", label_smoothing=0.5), f"{of_('dpo')}.label_smoothing", "less than 0.5"),
        (of("orpo", loss_type="ipo"), f"{of_('orpo')}.loss_type", "Unknown field"),
        (of("kto", per_device_train_batch_size=1), f"{of_('kto')}.per_device_train_batch_size", "equal to 2"),
        (of("kto", batch_size=1), f"{of_('kto')}.batch_size", "at least 2 are trained at a time"),
        (of("kto", batch_size=4, gradient_accumulation_steps=4), f"{of_('kto')}.batch_size", "at least 2"),
        (of("continued_pretraining", train_on="completion"), f"{of_('continued_pretraining')}.train_on", "every token"),
        (
            {"method": {"type": "dpo", "supervised": {"hyperparameters": {"n_epochs": 1}}}},
            "method.supervised",
            "The method is 'dpo', so there is no block 'supervised'",
        ),
        ({"method": {"type": "ppo"}}, "method.type", "'supervised'"),
        ({"method": {"type": "reinforcement"}}, GRADER_, "Send a grader"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, GRADER_, "required"),
        (graded(grader={"type": "python", "source": "x", "name": "n"}), f"{GRADER_}.type", "no code of callers is run"),
        (graded(grader={**GRADER, "input": "{{row.x}}"}), f"{GRADER_}.input", "Unknown namespace 'row'"),
        (graded(response_format={"type": "json_object"}), "method.reinforcement.response_format", "sampled freely"),
        (graded(truncate=True), f"{of_('reinforcement')}.truncate", "asks something else"),
        (graded(loss_type="cispo"), f"{of_('reinforcement')}.loss_type", "trained on for several steps"),
        (graded(reasoning_effort="much"), f"{of_('reinforcement')}.reasoning_effort", "'medium'"),
        (
            graded(eval_interval=2, eval_steps=3),
            f"{of_('reinforcement')}.eval_interval",
            "OpenAI's name for eval_steps",
        ),
        (graded(max_length=64, max_completion_length=64), f"{of_('reinforcement')}.max_length", "leaves no prompt"),
        (
            graded(num_generations=4, per_device_train_batch_size=3, gradient_accumulation_steps=2),
            f"{of_('reinforcement')}.num_generations",
            "is 6 completions, which num_generations 4 does not divide",
        ),
        (
            graded(batch_size=3, num_generations=3, per_device_train_batch_size=2),
            f"{of_('reinforcement')}.batch_size",
            "is 9 completions, no multiple of per_device_train_batch_size 2",
        ),
        (
            graded(batch_size=3, per_device_train_batch_size=2, gradient_accumulation_steps=2),
            f"{of_('reinforcement')}.batch_size",
            "is 4 completions, which are not batch_size 3 times as many",
        ),
        (graded(batch_size=4096), f"{of_('reinforcement')}.batch_size", "at most 4096 completions"),
        ({"evaluation": {"prompts": 3}}, "evaluation.prompts", "Not offered"),
        ({"resources": {"gpus": 2}}, "resources.gpus", "Not offered"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"suffix": "x" * 65}, "suffix", "at most 64"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
        ({"model": None}, "model", "string"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(body: dict[str, Any], param: str, says: str) -> None:
    refused_param, message = refusal(body)
    assert refused_param == param
    assert says in message


@pytest.mark.parametrize(
    "more", [{}, {"evaluation": {"holdout": 0.1}}, {"validation_file": "file-2", "evaluation": {"holdout": 0}}]
)
def test_early_stopping_goes_with_every_source_of_validation_rows(more: dict[str, Any]) -> None:
    assert spec(**hyper(early_stopping_patience=2), **more).hyperparameters.early_stopping_patience == 2


def test_embeddings_that_are_trained_may_have_a_rate() -> None:
    for tuning in ({"tuning": {"type": "full"}}, lora("qlora", modules_to_save=["model.embed_tokens"])):
        asked = spec(**pretraining(), **tuning)
        assert asked.hyperparameters.model_dump()["embedding_learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("block", "r", "alpha"),
    [
        ({"init_lora_weights": "pissa", "r": 8, "lora_alpha": 16}, 16, 32),
        ({"init_lora_weights": "olora", "r": 256, "lora_alpha": 2048}, 512, 4096),
        ({"init_lora_weights": "pissa_niter_16", "r": 8, "lora_alpha": 16, "use_rslora": True}, 16, 23),
        ({"init_lora_weights": True, "r": 8, "lora_alpha": 16}, 8, 16),
    ],
)
def test_a_result_is_an_adapter_as_any_other(block: dict[str, Any], r: int, alpha: int) -> None:
    asked = spec(**lora(**block))
    published = asked.published_tuning.model_dump()
    assert published == asked.tuning.model_dump() | {"r": r, "lora_alpha": alpha, "init_lora_weights": True}
    assert (
        JobSpec.model_validate({**asked.model_dump(mode="json"), "tuning": published}).tuning.model_dump() == published
    )


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"training_file": "file-1"})
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    assert invalid_request(errors, {"training_file": "file-1"}).param == "model"


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 8, "per_device_train_batch_size": 3},
        {"batch_size": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_a_batch_that_contradicts_its_parts_is_refused(given: dict[str, int]) -> None:
    assert refusal(hyper(**given))[0] == f"{HYPER}.batch_size"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_of_any_field_is_taken_or_refused_by_name(value: Any) -> None:
    for name in JobSpec.model_fields:
        body = {"model": "tiny", "training_file": "file-1", name: value}
        try:
            JobSpec.model_validate(body)
        except ValidationError as error:
            errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            assert (invalid_request(errors, body).param or "").split(".")[0] == name
