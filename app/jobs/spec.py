"""What a user asks for: the request body, the JSONB column, the trainer's job.json, the file beside the weights.

It is the create body of OpenAI's fine-tuning API plus `tuning`, `evaluation` and `resources`. Fields and values that
the service knows but does not offer yet are refused by name, never ignored.
"""

import json
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.files.spec import Auto, HoldoutShare

LARGEST_BATCH = 4096
LARGEST_MICRO_BATCH = 1024
SHORTEST_MAX_LENGTH = 8
HIGHEST_LEARNING_RATE = 1.0
"""Beyond these no training makes sense; a recipe stays within them too."""


Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]


class SpecPart(BaseModel):
    """A frozen piece of a spec that refuses fields it does not know and types it was not promised."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def unknown_fields_name_the_nearest(cls, given: Any) -> Any:
        """Refuse a misspelt field with the name that was probably meant."""
        if isinstance(given, dict):
            for name in given:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown_field", "{message}", unknown_field(cls, str(name)))
        return given


def unknown_field(part: type[BaseModel], name: str) -> dict[str, Any]:
    """The context of an `unknown_field` error: which field, and what to write instead."""
    name = name[:100].encode(errors="replace").decode()  # half a surrogate pair is JSON, but no text
    near = get_close_matches(name, part.model_fields, n=1, cutoff=0.6)
    known = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(part.model_fields)}."
    return {"field": name, "message": f"Unknown field '{name}'. {known}"}


def only(*offered: object) -> BeforeValidator:
    """Accept the values built so far; refuse the others by name instead of ignoring them."""

    def check(given: object) -> object:
        # `is` and the type, because 1 == True in Python and a spec means what it says.
        if any(given == value and type(given) is type(value) for value in offered):
            return given
        wanted = " or ".join(json.dumps(value) for value in offered)
        raise PydanticCustomError(
            "not_offered",
            "Not offered by this version yet: leave it out, or send {wanted}.",
            {"wanted": wanted},
        )

    return BeforeValidator(check)


class SupervisedHyperparameters(SpecPart):
    """How to train on given answers. A value that passes through to TRL or transformers has its name there."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field("auto", description="Passes over the training file.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = Field(
        "auto", description="Rows a step, or packs of rows with `packing`: per device × accumulation × gpus."
    )
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description="Scales the recipe's rate; a `learning_rate` given as a number is taken as it is."
    )
    learning_rate: Auto | Annotated[float, Field(gt=0, le=HIGHEST_LEARNING_RATE)] = "auto"
    max_length: Auto | Annotated[int, Field(ge=SHORTEST_MAX_LENGTH, le=1_048_576)] = Field(
        "auto", description="Tokens a row may have; auto: the longest row, at most the model's context."
    )
    truncate: bool = Field(False, description="Cut rows longer than `max_length` instead of refusing them.")
    packing: Auto | bool = Field(
        "auto",
        description="Lay several rows, which cannot see each other, end to end in a sequence of at most `max_length`"
        " tokens; the three numbers of a batch then count such packs. auto: where it saves a fifth of the tokens and"
        " none of the three is given.",
    )
    train_on: Auto | Literal["completion", "all"] = Field("auto", description="The answers, or every token.")
    warmup_ratio: Auto | Annotated[float, Field(ge=0, lt=1)] = "auto"
    lr_scheduler_type: Auto | Literal["linear", "cosine", "constant", "constant_with_warmup"] = "auto"
    weight_decay: Auto | Annotated[float, Field(ge=0, le=1)] = "auto"
    optim: (
        Auto
        | Literal[
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_bnb_8bit",
            "paged_adamw_8bit",
            "paged_adamw_32bit",
            "adafactor",
        ]
    ) = "auto"
    max_grad_norm: Auto | Annotated[float, Field(ge=0, le=1000)] = "auto"
    gradient_checkpointing: Auto | bool = "auto"
    per_device_train_batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_MICRO_BATCH)] = "auto"
    gradient_accumulation_steps: Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = "auto"
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(None, description="Stop after so many steps.")
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Noise on the embeddings while training, as NEFTune has it; its paper used 5, 10 and 15."
    )
    early_stopping_patience: Annotated[int | None, only(None)] = None
    save_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="A checkpoint every so many steps; auto: at each epoch's end and every 10 minutes.",
    )
    eval_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Loss on the validation file every so many steps; auto: at each epoch's end."
    )


class Supervised(SpecPart):
    """The block of `method` for supervised fine-tuning."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


LATER_METHODS = ("continued_pretraining", "dpo", "kto", "orpo", "simpo", "reward", "reinforcement")


class Method(SpecPart):
    """The objective."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Supervised()

    @model_validator(mode="before")
    @classmethod
    def a_later_method_is_refused_by_its_type(cls, given: Any) -> Any:
        """Rather than by its block, which would be an unknown field."""
        if isinstance(given, dict) and given.get("type") in LATER_METHODS:
            raise PydanticCustomError(
                "not_offered",
                "The method '{method}' is not offered by this version yet: use 'supervised'.",
                {"field": "type", "method": given["type"]},
            )
        return given


class FullTuning(SpecPart):
    """Every weight moves."""

    type: Literal["full"] = "full"


class LoraTuning(SpecPart):
    """An adapter of low rank moves, over a frozen base; see `peft.LoraConfig`."""

    type: Literal["lora"] = "lora"
    r: Auto | Annotated[int, Field(ge=1, le=512)] = Field("auto", description="Rank of the update matrices.")
    lora_alpha: Auto | Annotated[int, Field(ge=1, le=4096)] = Field("auto", description="Scale: alpha / r.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1, max_length=64)] = "all-linear"
    modules_to_save: Annotated[list[str], only([])] = []
    use_dora: bool = Field(False, description="Train the length of each weight's columns beside their direction.")
    use_rslora: bool = Field(False, description="Scale by alpha / √r, which keeps high ranks learning.")
    init_lora_weights: Annotated[bool | str, only(True)] = True
    loraplus_lr_ratio: Annotated[float, Field(ge=1, le=100)] | None = Field(
        None, description="LoRA+: the rate of the B matrices over that of the A matrices; its paper advises 16."
    )


class QloraTuning(LoraTuning):
    """The same adapter over a base in 4 bits (NF4, double quantization)."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the same fields under another tag


Tuning = Annotated[FullTuning | LoraTuning | QloraTuning, Field(discriminator="type")]


def _offered_tuning(given: object) -> object:
    if given == "auto":
        raise PydanticCustomError(
            "not_offered",
            "'auto' is not offered by this version yet: send a block with type lora, qlora or full.",
            {},
        )
    return given


class Evaluation(SpecPart):
    """What the result is measured on."""

    holdout: Auto | HoldoutShare = Field(
        "auto",
        description="Share of the training file's rows that is kept for validation, where there is no validation file;"
        " auto: a tenth from 100 rows on. Which rows is decided by their content, so rows that are added move none.",
    )
    prompts: Annotated[int | None, only(None)] = None
    suites: Annotated[list[str] | None, only(None)] = None
    forgetting_budget: Annotated[float | None, only(None)] = None


def _an_absent_evaluation(given: object) -> object:
    return {} if given is None else given


class Resources(SpecPart):
    """What the job may use, and how urgent it is."""

    gpus: Annotated[int, only(1)] = 1
    gpu_memory_gb: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="At least so much, in GB.")
    priority: Literal["low", "normal", "high"] = "normal"
    max_runtime: Annotated[int | None, only(None)] = None
    on_oom: Annotated[str, only("fail")] = "fail"


def _short_metadata(pairs: dict[str, str]) -> dict[str, str]:
    for key, value in pairs.items():
        if len(key) > 64 or len(value) > 512:
            raise PydanticCustomError(
                "metadata_too_long",
                "Keys have at most 64 characters and values 512; '{key}' does not fit.",
                {"key": key[:64]},
            )
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in key + value):
            raise PydanticCustomError("not_text", "NUL characters and lone surrogates are not allowed.", {})
    return pairs


Metadata = Annotated[dict[str, str], Field(max_length=16), AfterValidator(_short_metadata)]


class JobSpec(SpecPart):
    """A fine-tuning job, as asked for; resolved when no value is `auto` any more."""

    model: Text = Field(description="A base model's name, or a hub id: `org/name` or `org/name@revision`.")
    training_file: Text = Field(description="Id of an uploaded file with purpose `fine-tune`.")
    validation_file: Text | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="A word for the result's name."
    )
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = Field(None, description="Chosen when absent.")
    metadata: Metadata | None = None
    method: Method = Method()
    tuning: Annotated[Tuning, BeforeValidator(_offered_tuning)] = LoraTuning()
    evaluation: Annotated[Evaluation, BeforeValidator(_an_absent_evaluation)] = Evaluation()
    resources: Resources = Resources()
    integrations: Annotated[list[Any] | None, only(None, [])] = None

    @model_validator(mode="before")
    @classmethod
    def old_hyperparameters_become_the_method_block(cls, given: Any) -> Any:
        """Old scripts send `hyperparameters` at the top; it means the supervised block."""
        if not isinstance(given, dict) or "hyperparameters" not in given:
            return given
        rest = {name: value for name, value in given.items() if name != "hyperparameters"}
        old = given["hyperparameters"]
        if old is None:
            return rest
        if rest.get("method") is not None:
            raise PydanticCustomError(
                "two_forms",
                "Send `method` or the old `hyperparameters`, not both.",
                {"field": "hyperparameters"},
            )
        return {**rest, "method": {"type": "supervised", "supervised": {"hyperparameters": old}}}

    @model_validator(mode="after")
    def validation_rows_come_from_one_place(self) -> Self:
        """Refuse a holdout beside a validation file."""
        if self.validation_file is not None and self.evaluation.holdout not in ("auto", 0):
            message = "There is a validation_file, so nothing is held out. Leave one of the two out."
            raise PydanticCustomError(
                "two_validations", "{message}", {"field": "evaluation.holdout", "message": message}
            )
        return self

    @model_validator(mode="after")
    def batch_size_is_the_product_of_its_parts(self) -> Self:
        """Refuse three numbers that contradict each other."""
        given = self.hyperparameters
        parts = (given.batch_size, given.per_device_train_batch_size, given.gradient_accumulation_steps)
        batch_size, per_device, accumulation = (None if part == "auto" else part for part in parts)
        gpus = self.resources.gpus
        field = "method.supervised.hyperparameters.batch_size"
        rows = batch_size or (per_device or 1) * (accumulation or 1) * gpus
        if rows > LARGEST_BATCH or (accumulation and rows > accumulation * gpus * LARGEST_MICRO_BATCH):
            message = (
                f"A step has at most {LARGEST_BATCH} rows, and at most {LARGEST_MICRO_BATCH} of them at a time:"
                " batch_size = per_device_train_batch_size × gradient_accumulation_steps × gpus."
            )
            raise PydanticCustomError("batch_too_large", "{message}", {"field": field, "message": message})
        if batch_size is None:
            return self
        if per_device is not None and accumulation is not None and batch_size != per_device * accumulation * gpus:
            message = (
                f"batch_size is {batch_size}, but per_device_train_batch_size × gradient_accumulation_steps × gpus"
                f" is {per_device * accumulation * gpus}. Leave one of them 'auto'."
            )
            raise PydanticCustomError("inconsistent_batch", "{message}", {"field": field, "message": message})
        for name, part in (
            ("per_device_train_batch_size", per_device),
            ("gradient_accumulation_steps", accumulation),
        ):
            if part is not None and batch_size % (part * gpus):
                message = f"batch_size {batch_size} is not a multiple of {name} {part}. Leave one of them 'auto'."
                raise PydanticCustomError("inconsistent_batch", "{message}", {"field": field, "message": message})
        return self

    @property
    def hyperparameters(self) -> SupervisedHyperparameters:
        """The block of the method in use."""
        return self.method.supervised.hyperparameters


def resolved(value: object) -> int:
    """An integer of a resolved spec. Raises `TypeError` for what is still `auto`."""
    if not isinstance(value, int):
        raise TypeError(f"the spec is not resolved: {value!r} stands where a number should")
    return value
