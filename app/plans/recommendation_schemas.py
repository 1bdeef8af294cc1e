"""How a recommendation is asked for, and how it looks in a response."""

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from app.files.spec import Method
from app.jobs.parts import SpecPart, Text
from app.planning.hardware import GIB, Hardware
from app.planning.recommendation import Choice, Recommendation
from app.planning.second_thoughts import Alternative
from app.planning.situations import Fit, Goal, Priority, Rows
from app.plans.recommendations import Basis, Data

T = TypeVar("T")
Tuning = Literal["full", "lora", "qlora"]
Count = Annotated[int, Field(ge=1, le=10**13)]


class RecommendationAsked(SpecPart):
    """What it is for, and what is known of it. The less is known, the more is assumed, and said."""

    goal: Goal = Field(
        description="style: tone, format, JSON; task: answers to one kind of question; new_knowledge: what the base has"
        " not read; preference: the better of two answers; reasoning: steps to a checked answer."
    )
    model: Text = Field(description="As in a job's spec.")
    priority: Priority = Field("balanced", description="What matters most.")
    training_file: Text | None = Field(None, description="Id of an uploaded file; says all that follows by itself.")
    rows: Count | None = Field(None, description="How many there are, where no file is named.")
    tokens: Count | None = Field(None, description="That are learnt in one pass: those of the answers, or of a text.")
    longest_row: Annotated[int, Field(ge=1, le=1_048_576)] | None = Field(None, description="In tokens.")
    rows_are: Rows | None = Field(
        None,
        description="answers: chats, prompts with completions; text; preferences: pairs of answers; judged: single"
        " answers, each wanted or not; prompts, without answers.",
    )
    grader: bool = Field(False, description="Whether answers can be checked by a grader.")
    gpu_memory_gb: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=16)] | None = (
        Field(None, description="GB of each kind of GPU there is; absent: the workers of this service.")
    )

    @model_validator(mode="after")
    def rows_come_from_one_place(self) -> Self:
        """Refuse numbers beside the file that has them."""
        if self.training_file is not None:
            for name in ("rows", "tokens", "longest_row", "rows_are"):
                if getattr(self, name) is not None:
                    message = "The training_file says this by itself. Leave one of the two out."
                    raise PydanticCustomError("two_sources", "{message}", {"field": name, "message": message})
        return self

    @property
    def data(self) -> Data:
        """The numbers that were sent."""
        return Data(self.rows, self.tokens, self.longest_row, self.rows_are)


class ChoiceRead(BaseModel, Generic[T]):
    """A value, why, and who says so."""

    value: T
    reason: str
    source: str


class FitRead(BaseModel):
    """A device, and what a step would take on it at its peak."""

    name: str
    gib: float
    train_peak_gib: float
    fits: bool

    @classmethod
    def of(cls, fit: Fit) -> Self:
        """In GiB."""
        gib, peak = (round(size / GIB, 2) for size in (fit.hardware.room, fit.train_peak))
        return cls(name=fit.hardware.name, gib=gib, train_peak_gib=peak, fits=fit.fits)


class AlternativeRead(BaseModel):
    """Another way that could be the better one."""

    method: Method
    tuning: dict[str, Any] = Field(description="As in a job's spec.")
    why: str
    costs: str
    source: str
    devices: list[FitRead]

    @classmethod
    def of(cls, other: Alternative) -> Self:
        """From the choice."""
        devices = [FitRead.of(fit) for fit in other.fits]
        rest = {"why": other.why, "costs": other.costs, "source": other.source}
        return cls(method=other.method, tuning=other.option.block, devices=devices, **rest)


class CheckRead(BaseModel):
    """What to measure, which result speaks against the recommendation, and what to do then."""

    measure: str
    threshold: str
    then: str
    source: str


class DataRead(BaseModel):
    """The rows it is for."""

    rows: int | None
    tokens: int | None = Field(description="That are learnt in one pass.")
    longest_row: int | None
    rows_are: Rows | None
    basis: Basis = Field(description="Of `tokens`: given, a report on the file for this base, or the file's size.")


class RecommendationRead(BaseModel):
    """What to train with, why, what else, and when to change one's mind."""

    object: Literal["fine_tuning.recommendation"] = "fine_tuning.recommendation"
    goal: Goal
    model: str
    priority: Priority
    data: DataRead
    hardware: list[str] = Field(description="The devices that were taken into account; empty: none is known.")
    method: ChoiceRead[Method]
    tuning: ChoiceRead[Tuning]
    r: ChoiceRead[int | None]
    lora_alpha: ChoiceRead[int | None]
    use_rslora: ChoiceRead[bool]
    target_modules: ChoiceRead[str | None]
    learning_rate: ChoiceRead[float]
    n_epochs: ChoiceRead[int]
    trained_params: int | None = Field(description="Null where the base's shape is not known here.")
    devices: list[FitRead] = Field(description="On the hardware there is, else on common GPUs.")
    alternatives: Annotated[list[AlternativeRead], Field(description="The two next-best choices.")]
    change_your_mind: list[CheckRead]
    notes: list[str] = Field(description="What was not known, and what was assumed in its place.")
    spec: dict[str, Any] = Field(description="To be put into a job's spec; what it leaves out is the recipe's.")

    @classmethod
    def of(cls, asked: RecommendationAsked, data: Data, hardware: tuple[Hardware, ...], found: Recommendation) -> Self:
        """From what was found."""

        def choice(one: Choice[T]) -> ChoiceRead[T]:
            return ChoiceRead(value=one.value, reason=one.reason, source=one.source)

        return cls(
            goal=asked.goal,
            model=asked.model,
            priority=asked.priority,
            data=DataRead.model_validate(data, from_attributes=True),
            hardware=[one.name for one in hardware],
            method=choice(found.method),
            tuning=choice(found.tuning),
            r=choice(found.r),
            lora_alpha=choice(found.lora_alpha),
            use_rslora=choice(found.use_rslora),
            target_modules=choice(found.target_modules),
            learning_rate=choice(found.learning_rate),
            n_epochs=choice(found.n_epochs),
            trained_params=found.trained_params,
            devices=[FitRead.of(fit) for fit in found.fits],
            alternatives=[AlternativeRead.of(other) for other in found.alternatives],
            change_your_mind=[CheckRead.model_validate(one, from_attributes=True) for one in found.change_your_mind],
            notes=list(found.notes),
            spec={"method": {"type": found.method.value}, "tuning": found.option.block},
        )
