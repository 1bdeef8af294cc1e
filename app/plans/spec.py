"""What a plan is asked for with: a job spec, whose data may be assumed instead of uploaded."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.jobs.parts import SpecPart, Text
from app.jobs.spec import JobRequest


class Assume(SpecPart):
    """What the training file would have."""

    rows: Annotated[int, Field(ge=1, le=10**10)]
    tokens: Annotated[int, Field(ge=1, le=10**13)] = Field(description="Of all rows, prompts and answers.")
    longest: Annotated[int, Field(ge=1, le=10**8)] = Field(description="Tokens of the longest row.")


class PlanSpec(JobRequest):
    """A job spec, or one with `training_file: null` and what to `assume` of it."""

    training_file: Text | None = Field(  # type: ignore[assignment]  # wider than a job's
        None, description="Id of an uploaded file; null where its data is assumed."
    )
    assume: Assume | None = None

    @model_validator(mode="after")
    def data_comes_from_one_place(self) -> Self:
        """Refuse neither, and both."""
        if self.training_file is None and self.assume is None:
            message = "There is no data to plan for. Send training_file, or assume: {rows, tokens, longest}."
            raise PydanticCustomError("no_data", "{message}", {"field": "training_file", "message": message})
        if self.training_file is not None and self.assume is not None:
            message = "There is a training_file, so nothing is assumed. Leave one of the two out."
            raise PydanticCustomError("two_data", "{message}", {"field": "assume", "message": message})
        return self
