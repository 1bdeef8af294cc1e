"""What a user asks for: the request body, the JSONB column, the trainer's job.json, the file beside the weights.

It is the create body of OpenAI's fine-tuning API plus `tuning`, `evaluation` and `resources`. Fields and values that
the service knows but does not offer yet are refused by name, never ignored.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from app.files.spec import Auto, HoldoutShare
from app.jobs import groups
from app.jobs.methods import (
    LARGEST_BATCH,
    LARGEST_MICRO_BATCH,
    ContinuedPretrainingHyperparameters,
    Hyperparameters,
    KtoHyperparameters,
    Method,
    ReinforcementHyperparameters,
)
from app.jobs.parts import SpecPart, Text, only

LARGEST_RANK = 512
LARGEST_ALPHA = 4096
EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "word_embeddings"})
HEADS = frozenset({"lm_head", "embed_out"})
"""What families call the two layers with a vector for each word."""


class FullTuning(SpecPart):
    """Every weight moves."""

    type: Literal["full"] = "full"


INITIALISATIONS = r"^(pissa(_niter_[1-9][0-9]?)?|olora|loftq)$"


def _an_initialisation(given: object) -> object:
    if given is True or (isinstance(given, str) and re.match(INITIALISATIONS, given)):
        return given
    raise PydanticCustomError(
        "not_offered",
        'Not offered: send true, "pissa", "pissa_niter_N" with an N from 1 to 99 such as 16, "olora", or of qlora'
        ' "loftq".',
        {},
    )


class LoraTuning(SpecPart):
    """An adapter of low rank moves, over a frozen base; see `peft.LoraConfig`."""

    type: Literal["lora"] = "lora"
    r: Auto | Annotated[int, Field(ge=1, le=LARGEST_RANK)] = Field("auto", description="Rank of the update matrices.")
    lora_alpha: Auto | Annotated[int, Field(ge=1, le=LARGEST_ALPHA)] = Field("auto", description="Scale: alpha / r.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1, max_length=64)] = "all-linear"
    modules_to_save: Annotated[list[Text], Field(max_length=64)] = Field(
        [],
        description="Modules of the base that are trained whole beside the adapter and saved with it, such as"
        " `embed_tokens` and `lm_head` for new words.",
    )
    use_dora: bool = Field(False, description="Train the length of each weight's columns beside their direction.")
    use_rslora: bool = Field(False, description="Scale by alpha / √r, which keeps high ranks learning.")
    init_lora_weights: Annotated[
        Literal[True] | Annotated[str, Field(pattern=INITIALISATIONS)], BeforeValidator(_an_initialisation)
    ] = Field(
        True,
        description="What the adapter begins as. `true`: nothing. `pissa`, `olora`: a part of the base's own weights,"
        " of lora alone; `pissa_niter_N` finds it faster, about. Their results are converted to the untouched base,"
        " which doubles the rank. `loftq`: what 4 bits lose of the base, of qlora alone.",
    )
    loraplus_lr_ratio: Annotated[float, Field(ge=1, le=100)] | None = Field(
        None, description="LoRA+: the rate of the B matrices over that of the A matrices; its paper advises 16."
    )

    @model_validator(mode="after")
    def a_module_is_trained_in_one_way(self) -> Self:
        """Refuse what is to have an adapter and to be trained whole."""
        both = [name for name in self.modules_to_save if name in self.target_modules]
        if both and self.target_modules != "all-linear":
            message = f"{', '.join(both)} is in target_modules too. Leave it out of one of the two."
            raise PydanticCustomError("two_ways", "{message}", {"field": "modules_to_save", "message": message})
        return self

    @property
    def words_to_save(self) -> frozenset[Literal["embeddings", "head"]]:
        """Which of the two layers with a vector for each word `modules_to_save` names."""
        last = {name.rsplit(".", 1)[-1] for name in self.modules_to_save}
        named: dict[Literal["embeddings", "head"], bool] = {
            "embeddings": bool(last & EMBEDDINGS),
            "head": bool(last & HEADS),
        }
        return frozenset(layer for layer, is_named in named.items() if is_named)

    @property
    def takes_from_base(self) -> bool:
        """Whether the adapter begins as a part of the base's weights, which the base lacks while it trains."""
        return self.init_lora_weights not in (True, "loftq")

    @property
    def published(self) -> Self:
        """What its result is: an adapter as any other. Of a resolved spec.

        One that took from the base is given what it became and, negative, what it began as: twice the rank, at the
        same scale, or with rsLoRA the one that a whole `lora_alpha` comes nearest to.
        """
        if not self.takes_from_base:
            return self.model_copy(update={"init_lora_weights": True})
        wider = math.sqrt(2) if self.use_rslora else 2
        alpha = round(wider * resolved(self.lora_alpha))
        return self.model_copy(update={"init_lora_weights": True, "r": 2 * resolved(self.r), "lora_alpha": alpha})

    @model_validator(mode="after")
    def its_beginning_is_possible(self) -> Self:
        """Refuse an initialisation that does not go with the rest."""
        begins, field, why = self.init_lora_weights, "init_lora_weights", None
        if self.takes_from_base and self.type != "lora":
            why = f"'{begins}' changes the base's weights, which have 4 bits here. Send type 'lora', or leave it out."
        elif begins == "loftq" and self.type == "lora":
            why = "'loftq' makes up for the 4 bits of qlora. Send type 'qlora', or leave it out."
        elif begins is not True and self.use_dora:
            why = f"'{begins}' does not go with use_dora. Leave one of the two out."
        else:
            for name, given, most in (("r", self.r, LARGEST_RANK), ("lora_alpha", self.lora_alpha, LARGEST_ALPHA)):
                if self.takes_from_base and given != "auto" and 2 * given > most:
                    field = name
                    why = f"With '{begins}' the result has twice as much: send at most {most // 2}."
        if why is not None:
            raise PydanticCustomError("impossible_beginning", "{message}", {"field": field, "message": why})
        return self


class QloraTuning(LoraTuning):
    """The same adapter over a base in 4 bits (NF4, double quantization)."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the same fields under another tag


Tuning = Annotated[FullTuning | LoraTuning | QloraTuning, Field(discriminator="type")]


class OrAuto:
    """Beside a block, the word `auto`. Not one branch of a union more, whose errors would name no field of a block."""

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The blocks' schema, and the word past it."""
        return core_schema.no_info_wrap_validator_function(
            self._take,
            handler.generate_schema(Tuning),
            serialization=core_schema.wrap_serializer_function_ser_schema(self._show),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The same for readers."""
        return {"anyOf": [{"const": "auto", "type": "string"}, handler(schema)]}

    @staticmethod
    def _take(given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        return given if given == "auto" else handler(given)

    @staticmethod
    def _show(tuning: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return tuning if tuning == "auto" else handler(tuning)


def _decided_tuning(given: object) -> object:
    if given == "auto":
        raise PydanticCustomError(
            "not_decided",
            "'auto' is decided when a job is created: here stands what it became, a block with its type.",
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
    on_oom: Literal["fail", "shrink"] = Field(
        "fail",
        description="Where a GPU's memory does not suffice: `fail`, with what would fit; or `shrink`: half as many rows"
        " at a time and as many a step, until they fit.",
    )


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
    tuning: Annotated[Tuning, BeforeValidator(_decided_tuning)] = LoraTuning()
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
    def early_stopping_has_rows_to_validate_with(self) -> Self:
        """Refuse it where it is known that there are none; preparing refuses where `auto` holds none out."""
        patience = self.hyperparameters.early_stopping_patience
        if patience is not None and self.validation_file is None and self.evaluation.holdout == 0:
            message = (
                "Early stopping goes by the loss on validation rows, and evaluation.holdout is 0. Hold some out, such"
                " as 0.1, or send a validation_file."
            )
            field = self.param("early_stopping_patience")
            raise PydanticCustomError("no_validation", "{message}", {"field": field, "message": message})
        return self

    @model_validator(mode="after")
    def batch_size_is_the_product_of_its_parts(self) -> Self:
        """Refuse three numbers that contradict each other."""
        given = self.hyperparameters
        parts = (given.batch_size, given.per_device_train_batch_size, given.gradient_accumulation_steps)
        batch_size, per_device, accumulation = (None if part == "auto" else part for part in parts)
        gpus = self.resources.gpus
        if isinstance(given, ReinforcementHyperparameters):
            return self
        field = self.param("batch_size")
        rows = batch_size or (per_device or 1) * (accumulation or 1) * gpus
        if rows > LARGEST_BATCH or (accumulation and rows > accumulation * gpus * LARGEST_MICRO_BATCH):
            message = (
                f"A step has at most {LARGEST_BATCH} rows, and at most {LARGEST_MICRO_BATCH} of them at a time:"
                " batch_size = per_device_train_batch_size × gradient_accumulation_steps × gpus."
            )
            raise PydanticCustomError("batch_too_large", "{message}", {"field": field, "message": message})
        if batch_size is None:
            return self
        at_a_time = batch_size if accumulation is None else batch_size // (accumulation * gpus)
        if isinstance(given, KtoHyperparameters) and per_device is None and at_a_time < 2:
            message = "kto compares the rows of a batch, so at least 2 are trained at a time. Send a larger batch_size."
            raise PydanticCustomError("inconsistent_batch", "{message}", {"field": field, "message": message})
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

    @model_validator(mode="after")
    def groups_are_whole(self) -> Self:
        """Refuse numbers by which the answers to a prompt would be in two steps."""
        given = self.hyperparameters
        if isinstance(given, ReinforcementHyperparameters) and (why := groups.problem(given, self.resources.gpus)):
            field = self.param(why.field)
            raise PydanticCustomError("inconsistent_batch", "{message}", {"field": field, "message": why.message})
        return self

    @model_validator(mode="after")
    def completions_leave_room_for_a_prompt(self) -> Self:
        """Refuse a completion as long as all of a row may be."""
        given = self.hyperparameters
        if not isinstance(given, ReinforcementHyperparameters):
            return self
        longest, completion = given.max_length, given.max_completion_length
        if longest != "auto" and completion != "auto" and completion >= longest:
            message = (
                f"max_length {longest} counts a prompt with its completion, and leaves no prompt beside"
                f" max_completion_length {completion}. Raise it, or leave it 'auto'."
            )
            raise PydanticCustomError("no_prompt", "{message}", {"field": self.param("max_length"), "message": message})
        return self

    @model_validator(mode="after")
    def evaluations_have_one_interval(self) -> Self:
        """Refuse OpenAI's name for it beside ours, unless they agree."""
        given = self.hyperparameters
        if isinstance(given, ReinforcementHyperparameters):
            theirs, ours = given.eval_interval, given.eval_steps
            if "auto" not in (theirs, ours) and theirs != ours:
                message = f"eval_interval {theirs} is OpenAI's name for eval_steps, which is {ours}. Send one of them."
                field = self.param("eval_interval")
                raise PydanticCustomError("two_forms", "{message}", {"field": field, "message": message})
        return self

    @model_validator(mode="after")
    def a_rate_of_embeddings_has_embeddings(self) -> Self:
        """Refuse a rate for what is not trained."""
        given = self.hyperparameters
        if not isinstance(given, ContinuedPretrainingHyperparameters) or given.embedding_learning_rate is None:
            return self
        if isinstance(self.tuning, FullTuning) or (isinstance(self.tuning, LoraTuning) and self.tuning.words_to_save):
            return self
        message = (
            "Embeddings are not trained by this adapter. Name them in tuning.modules_to_save, such as"
            " ['embed_tokens', 'lm_head'], or send tuning.type 'full'."
        )
        field = self.param("embedding_learning_rate")
        raise PydanticCustomError("no_embeddings", "{message}", {"field": field, "message": message})

    @property
    def published_tuning(self) -> FullTuning | LoraTuning | QloraTuning:
        """What its result is."""
        return self.tuning.published if isinstance(self.tuning, LoraTuning) else self.tuning

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of the method in use."""
        return self.method.hyperparameters

    def param(self, name: str) -> str:
        """The path of one of them."""
        return f"method.{self.method.type}.hyperparameters.{name}"


class JobRequest(JobSpec):
    """A spec as it is sent, whose tuning may be left to the service."""

    tuning: Annotated[Auto | Tuning, OrAuto()] = LoraTuning()  # type: ignore[assignment]  # wider until it is decided


def resolved(value: object) -> int:
    """An integer of a resolved spec. Raises `TypeError` for what is still `auto`."""
    if not isinstance(value, int):
        raise TypeError(f"the spec is not resolved: {value!r} stands where a number should")
    return value
