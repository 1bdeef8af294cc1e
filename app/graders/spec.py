"""What a grader is: texts to compare, and how; or several graders and a formula.

OpenAI's graders, as far as they need no model and run no code; the others are refused by name, with the reason.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from app.graders import formula, templates
from app.graders.metrics import Metric
from app.jobs.parts import SpecPart, Text

_ELSEWHERE = {
    "score_model": "there is no model here that grades",
    "label_model": "there is no model here that grades",
    "python": "no code of callers is run here",
}
_NO_METRIC = {
    "cosine": "there is no embedding model here",
    "meteor": "its word lists are not here",
}


def _filled_in(text: str) -> str:
    try:
        templates.check(text)
    except templates.BadTemplate as error:
        raise PydanticCustomError("bad_template", "{message}", {"message": str(error)}) from error
    return text


Template = Annotated[str, Field(max_length=templates.MAX_CHARACTERS), AfterValidator(_filled_in)]
"""A text with variables; see `app.graders.templates`."""


class StringCheck(SpecPart):
    """1 or 0. `like` is assumed to ask whether the input contains the reference; `ilike` does so whatever the case."""

    type: Literal["string_check"]
    name: Text
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


def _offered_metric(given: object) -> object:
    if isinstance(given, str) and given in _NO_METRIC:
        raise PydanticCustomError(
            "not_offered",
            "'{metric}' is not offered: {reason}. Use fuzzy_match, bleu, gleu, rouge_1 to rouge_5, or rouge_l.",
            {"metric": given, "reason": _NO_METRIC[given]},
        )
    return given


class TextSimilarity(SpecPart):
    """How alike two texts are, from 0 to 1."""

    type: Literal["text_similarity"]
    name: Text
    input: Template
    reference: Template
    evaluation_metric: Annotated[Metric, BeforeValidator(_offered_metric)]


def _offered_type(*offered: str) -> BeforeValidator:
    """Refuse the other types with the reason, or with the nearest there is."""

    def check(given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if kind is None or kind in offered:
            return given
        known = " or ".join(f"'{name}'" for name in offered)
        if isinstance(kind, str) and kind in _ELSEWHERE:
            message = f"'{kind}' is not offered: {_ELSEWHERE[kind]}. Use {known}."
        elif kind == "multi":
            message = f"A multi grader has no multi grader in it. Use {known}."
        else:
            near = get_close_matches(str(kind), offered, n=1)
            message = (
                f"Unknown grader type. Did you mean '{near[0]}'?" if near else f"Unknown grader type. Use {known}."
            )
        raise PydanticCustomError("not_offered", "{message}", {"field": "type", "message": message})

    return BeforeValidator(check)


SingleGrader = Annotated[
    Annotated[StringCheck | TextSimilarity, Field(discriminator="type")],
    _offered_type("string_check", "text_similarity"),
]
Key = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class MultiGrader(SpecPart):
    """Several graders, and the formula that makes one reward of theirs."""

    type: Literal["multi"]
    name: Text
    graders: Annotated[dict[Key, SingleGrader], Field(min_length=1, max_length=10)] = Field(
        description="By the names that `calculate_output` has for them."
    )
    calculate_output: Annotated[str, Field(min_length=1, max_length=formula.MAX_CHARACTERS)] = Field(
        description=f"Numbers, graders, + - * /, parentheses, and {', '.join(formula.FUNCTIONS)}."
    )

    @model_validator(mode="before")
    @classmethod
    def one_grader_goes_by_its_name(cls, given: Any) -> Any:
        """The stock clients' types have a grader where the service's documents have a map of them."""
        graders = given.get("graders") if isinstance(given, dict) else None
        if isinstance(graders, dict) and isinstance(graders.get("type"), str) and isinstance(graders.get("name"), str):
            return {**given, "graders": {graders["name"]: graders}}
        return given

    @model_validator(mode="after")
    def the_formula_is_arithmetic_over_the_graders(self) -> Self:
        """Refuse a formula that could not be calculated for any sample."""
        for key in self.graders:
            if key in formula.FUNCTIONS:
                message = f"'{key}' is a function of calculate_output: give the grader another name."
                raise PydanticCustomError("bad_name", "{message}", {"field": "graders", "message": message})
        try:
            formula.check(self.calculate_output, self.graders)
        except formula.BadFormula as error:
            context = {"field": "calculate_output", "message": str(error)}
            raise PydanticCustomError("bad_formula", "{message}", context) from error
        return self


Grader = Annotated[
    Annotated[StringCheck | TextSimilarity | MultiGrader, Field(discriminator="type")],
    _offered_type("string_check", "text_similarity", "multi"),
]


def item_paths(grader: StringCheck | TextSimilarity | MultiGrader) -> tuple[str, ...]:
    """All that it reads of an item, as `templates.item_paths` has it."""
    parts = list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]
    texts = [text for part in parts for text in (part.input, part.reference)]
    return tuple(sorted({path for text in texts for path in templates.item_paths(text)}))
