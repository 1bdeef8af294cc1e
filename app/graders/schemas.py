"""How graders, and what they make of a sample, look in a request and in a response."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from app.graders.run import Grade
from app.graders.spec import Grader, MultiGrader, StringCheck, TextSimilarity
from app.graders.templates import MAX_CHARACTERS
from app.jobs.parts import SpecPart


class GraderValidate(SpecPart):
    """A grader to look at."""

    grader: Grader


class GraderRun(SpecPart):
    """A grader, and what it shall grade."""

    grader: Grader
    model_sample: Annotated[str, Field(max_length=MAX_CHARACTERS)] = Field(
        description="The model's answer: `sample.output_text`, and `sample.output_json` where it is JSON."
    )
    item: dict[str, Any] | None = Field(None, description="The row it answers, for `item.…`.")


class GraderValidated(BaseModel):
    """The grader, as it was understood."""

    grader: StringCheck | TextSimilarity | MultiGrader


class GraderErrors(BaseModel):
    """OpenAI's flags; those of models and of Python never rise here."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None


class GraderMetadata(BaseModel):
    """How the reward came about."""

    name: str
    type: str
    errors: GraderErrors
    error_message: str | None
    """What the flags mean this time; OpenAI has no place for it."""
    execution_time: float
    """In seconds."""
    scores: dict[str, float]
    token_usage: int | None = None
    sampled_model_name: str | None = None


class GraderRunRead(BaseModel):
    """A sample, graded."""

    reward: float
    sub_rewards: dict[str, float]
    metadata: GraderMetadata
    model_grader_token_usage_per_model: dict[str, Any] = {}

    @classmethod
    def of(cls, grader: StringCheck | TextSimilarity | MultiGrader, grade: Grade, *, seconds: float) -> Self:
        """From a grade."""
        metadata = GraderMetadata(
            name=grader.name,
            type=grader.type,
            errors=GraderErrors.model_validate(dict.fromkeys(grade.flags, True)),
            error_message=grade.message,
            execution_time=seconds,
            scores=grade.sub_rewards,
        )
        return cls(reward=grade.reward, sub_rewards=grade.sub_rewards, metadata=metadata)
