"""The methods a job can train by, and the numbers that each of them takes: the block `method` of a spec.

All of them have the same numbers, with a few of their own. What a method has no use for is refused with the reason.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from app.files.spec import Auto
from app.files.spec import Method as MethodType
from app.graders.spec import Grader, MultiGrader, StringCheck, TextSimilarity
from app.jobs.parts import SpecPart

LARGEST_BATCH = 4096
LARGEST_MICRO_BATCH = 1024
SHORTEST_MAX_LENGTH = 8
HIGHEST_LEARNING_RATE = 1.0
LOWEST_MULTIPLIER = 1e-6
"""Beyond these no training makes sense; a recipe stays within them too."""
MOST_GENERATIONS = 128
LONGEST_COMPLETION = 131_072


def useless(why: str, *values: object) -> BeforeValidator:
    """Take only the values that leave something out, which this method has no use for."""

    def check(given: object) -> object:
        if any(given == value and type(given) is type(value) for value in values):
            return given
        wanted = " or ".join(json.dumps(value) for value in values)
        raise PydanticCustomError("no_use", "{why} Leave it out, or send {wanted}.", {"why": why, "wanted": wanted})

    return BeforeValidator(check)


class Hyperparameters(SpecPart):
    """What every method has. A value that passes through to TRL or transformers has its name there."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field("auto", description="Passes over the training file.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = Field(
        "auto", description="Rows a step, or packs of rows with `packing`: per device × accumulation × gpus."
    )
    learning_rate_multiplier: Auto | Annotated[float, Field(ge=LOWEST_MULTIPLIER, le=1000)] = Field(
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
    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="End training after so many evaluations in a row without a lower validation loss; it takes"
        " validation rows. The result has the weights of the lowest in any case.",
    )
    save_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="A checkpoint every so many steps; auto: at each epoch's end and every 10 minutes. And wherever"
        " an evaluation finds the lowest loss so far.",
    )
    eval_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Loss on the validation file every so many steps; auto: at each epoch's end."
    )


class SupervisedHyperparameters(Hyperparameters):
    """Training on given answers."""


class ContinuedPretrainingHyperparameters(Hyperparameters):
    """Training on every token of plain text."""

    train_on: Annotated[Auto | Literal["all"], useless("Of a text every token is trained.", "auto", "all")] = "auto"
    embedding_learning_rate: Annotated[float, Field(gt=0, le=HIGHEST_LEARNING_RATE)] | None = Field(
        None,
        description="A rate of their own for the embeddings and the output layer, where they are trained; the rate of"
        " the rest when absent.",
    )


_WHOLE_ROWS = useless("Preferences are compared row by row, so they are not packed.", "auto", False)
_ANSWERS = useless("Of a preference the answers are compared, not its prompt.", "auto", "completion")
_NO_NOISE = useless("NEFTune is for supervised training: noise would be compared with noise.", None)


class PreferenceHyperparameters(Hyperparameters):
    """What the methods on preferences have in common: rows are compared whole, by their answers."""

    packing: Annotated[Auto | bool, _WHOLE_ROWS] = "auto"
    train_on: Annotated[Auto | Literal["completion", "all"], _ANSWERS] = "auto"
    neftune_noise_alpha: Annotated[float | None, _NO_NOISE] = None


class DpoHyperparameters(PreferenceHyperparameters):
    """Direct preference optimization; see `trl.DPOConfig`."""

    beta: Auto | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto", description="How much it costs to leave the reference model, the one before training."
    )
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"] = "sigmoid"
    label_smoothing: Auto | Annotated[float, Field(ge=0, lt=0.5)] = Field(
        "auto", description="Share of the preferences that may be the wrong way round; auto: 0.1 with `robust`, else 0."
    )


class KtoHyperparameters(PreferenceHyperparameters):
    """Kahneman-Tversky optimization on single answers, each wanted or not; see `trl.KTOConfig`. Rows stay in order."""

    beta: Auto | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto", description="How much it costs to leave the reference model, the one before training."
    )
    desirable_weight: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="Of the wanted answers' losses.")
    undesirable_weight: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="Of the others'.")
    per_device_train_batch_size: Auto | Annotated[int, Field(ge=2, le=LARGEST_MICRO_BATCH)] = Field(
        "auto", description="At least 2: each prompt is compared with the answer to another one of its batch."
    )


class OrpoHyperparameters(PreferenceHyperparameters):
    """Odds ratio preference optimization, without a reference model; see `trl.experimental.orpo`."""

    beta: Auto | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto", description="Weight of the odds ratio beside the likelihood of the chosen answer; lambda in its paper."
    )


class SimpoHyperparameters(PreferenceHyperparameters):
    """Simple preference optimization, without a reference model; `loss_type` simpo of `trl.experimental.cpo`."""

    beta: Auto | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto", description="Scale of the mean log-probability of an answer's tokens, which is its reward."
    )
    simpo_gamma: Auto | Annotated[float, Field(ge=0, le=100)] = Field(
        "auto", description="Margin by which the chosen answer's reward shall be the higher; auto: half of beta."
    )


class RewardHyperparameters(PreferenceHyperparameters):
    """A model that gives answers a number; see `trl.RewardConfig`."""

    center_rewards_coefficient: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Draws rewards to a mean of zero (Eisenstein et al. 2023, who used 0.01)."
    )


_UNPACKED = useless("Answers are generated prompt by prompt, so prompts are not packed.", "auto", False)
_OWN_ANSWERS = useless("What is trained is what the model says itself.", "auto", "completion")
_WHOLE_PROMPTS = useless("A prompt that is cut asks something else.", False)
_SAME_AT_A_RATIO_OF_ONE = ("cispo", "sapo", "luspo", "vespo")
"""TRL's other losses. They differ in what they do to the ratio of new to old probabilities."""


def _a_loss_of_its_own(given: object) -> object:
    if given in _SAME_AT_A_RATIO_OF_ONE:
        raise PydanticCustomError(
            "not_offered",
            "'{loss_type}' is another loss only where completions are trained on for several steps. Here they are for"
            " one: send dapo, grpo, dr_grpo or bnpo.",
            {"loss_type": given},
        )
    return given


class ReinforcementHyperparameters(Hyperparameters):
    """Group relative policy optimization on the model's own answers, which a grader rewards; see `trl.GRPOConfig`.

    Each set of completions is trained on for one step.
    """

    batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = Field(
        "auto",
        description="Prompts a step, each answered `num_generations` times: per device × accumulation × gpus are as"
        " many completions. Prompts that fill no whole step at the end of a pass are left to the next, which has"
        " another order.",
    )
    per_device_train_batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_MICRO_BATCH)] = Field(
        "auto", description="Completions at a time, as TRL counts them; all of a step are generated at once."
    )
    max_length: Auto | Annotated[int, Field(ge=SHORTEST_MAX_LENGTH, le=1_048_576)] = Field(
        "auto",
        description="Tokens that a prompt may have with its completion; auto: the longest prompt and"
        " `max_completion_length`, at most the model's context.",
    )
    truncate: Annotated[bool, _WHOLE_PROMPTS] = False
    packing: Annotated[Auto | bool, _UNPACKED] = "auto"
    train_on: Annotated[Auto | Literal["completion", "all"], _OWN_ANSWERS] = "auto"
    neftune_noise_alpha: Annotated[
        float | None, useless("NEFTune is for supervised training: answers would be generated with noise.", None)
    ] = None
    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="End training after so many evaluations in a row without a higher reward; it takes validation"
        " rows. The result has the weights of the highest in any case.",
    )
    eval_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Answer the validation prompts every so many steps; auto: at each epoch's end."
    )
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = Field(
        None, description="OpenAI's, for its own reasoning models. Taken, and without effect on a base of yours."
    )
    compute_multiplier: Auto | Annotated[float, Field(ge=1e-5, le=10)] = Field(
        "auto", description="OpenAI's: scales the recipe's `num_generations`, where that is left to it."
    )
    eval_interval: Auto | Annotated[int, Field(ge=1)] = Field("auto", description="OpenAI's name for `eval_steps`.")
    eval_samples: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="OpenAI's: validation prompts that an evaluation answers, once each; auto: all of them."
    )
    num_generations: Auto | Annotated[int, Field(ge=2, le=MOST_GENERATIONS)] = Field(
        "auto", description="Answers to a prompt, which are rewarded by how much better they are than one another."
    )
    max_completion_length: Auto | Annotated[int, Field(ge=1, le=LONGEST_COMPLETION)] = Field(
        "auto", description="Tokens of an answer, where it is broken off."
    )
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="Of the sampling, as in TRL.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Of the sampling; 1: all tokens.")
    beta: Auto | Annotated[float, Field(ge=0, le=100)] = Field(
        "auto",
        description="How much it costs to leave the reference model, the one before training; 0: there is none.",
    )
    loss_type: Annotated[Literal["dapo", "grpo", "dr_grpo", "bnpo"], BeforeValidator(_a_loss_of_its_own)] = "dapo"
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="TRL's range for the ratio of new to old probabilities, which is 1 here: without effect."
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="What differences of rewards are divided by: their deviation in a group, in a step."
    )


class Supervised(SpecPart):
    """The block of `method` for supervised fine-tuning."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class ContinuedPretraining(SpecPart):
    """The block of `method` for continued pretraining."""

    hyperparameters: ContinuedPretrainingHyperparameters = ContinuedPretrainingHyperparameters()


class Dpo(SpecPart):
    """The block of `method` for direct preference optimization."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Kto(SpecPart):
    """The block of `method` for Kahneman-Tversky optimization."""

    hyperparameters: KtoHyperparameters = KtoHyperparameters()


class Orpo(SpecPart):
    """The block of `method` for odds ratio preference optimization."""

    hyperparameters: OrpoHyperparameters = OrpoHyperparameters()


class Simpo(SpecPart):
    """The block of `method` for simple preference optimization."""

    hyperparameters: SimpoHyperparameters = SimpoHyperparameters()


class Reward(SpecPart):
    """The block of `method` for reward models."""

    hyperparameters: RewardHyperparameters = RewardHyperparameters()


class Reinforcement(SpecPart):
    """The block of `method` for reinforcement."""

    grader: Grader = Field(description="What rewards each answer; `item` is its row.")
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: Annotated[
        None, useless("Answers are sampled freely here: let the grader look at their form instead.", None)
    ] = None


BLOCKS: tuple[MethodType, ...] = (
    "supervised",
    "continued_pretraining",
    "dpo",
    "kto",
    "orpo",
    "simpo",
    "reward",
    "reinforcement",
)
"""Methods on offer; each has the block of its name."""


class Method(SpecPart):
    """The objective: its type, and the block of that name. A spec has no other block, and answers show no other."""

    type: MethodType = "supervised"
    supervised: Supervised | None = None
    continued_pretraining: ContinuedPretraining | None = None
    dpo: Dpo | None = None
    kto: Kto | None = None
    orpo: Orpo | None = None
    simpo: Simpo | None = None
    reward: Reward | None = None
    reinforcement: Reinforcement | None = None

    @model_validator(mode="before")
    @classmethod
    def one_block_of_the_type(cls, given: Any) -> Any:
        """Fill in a block that is left out; refuse those of other methods."""
        if not isinstance(given, dict):
            return given
        kind = given.get("type", "supervised")
        if kind not in BLOCKS:
            return given
        for other in BLOCKS:
            if other != kind and given.get(other) is not None:
                message = f"The method is '{kind}', so there is no block '{other}'. Send '{kind}', or another type."
                raise PydanticCustomError("another_method", "{message}", {"field": other, "message": message})
        if kind == "reinforcement" and given.get(kind) is None:
            message = (
                "What rewards the answers? Send a grader, as POST /v1/fine_tuning/alpha/graders/validate takes it."
            )
            raise PydanticCustomError("no_grader", "{message}", {"field": "reinforcement.grader", "message": message})
        return given if given.get(kind) is not None else {**given, kind: {}}

    @model_serializer(mode="wrap")
    def without_other_blocks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As OpenAI shows it."""
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def grader(self) -> StringCheck | TextSimilarity | MultiGrader | None:
        """What rewards answers, where the method has one."""
        return self.reinforcement.grader if self.reinforcement is not None else None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of the block in use."""
        block: Supervised = getattr(self, self.type)  # each has them
        return block.hyperparameters
