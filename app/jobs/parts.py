"""What the pieces of a spec are made of: frozen, strict, and clear about what they refuse."""

import json
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]

OF_ANY_VERSION = {"of": "any version"}
"""The context in which a stored spec is read for what is known of it, and not to train by it."""


class SpecPart(BaseModel):
    """A frozen piece of a spec that refuses fields it does not know and types it was not promised."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def unknown_fields_name_the_nearest(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse a misspelt field with the name that was probably meant; not in what another version has written."""
        if isinstance(given, dict) and info.context is OF_ANY_VERSION:
            return {name: value for name, value in given.items() if name in cls.model_fields}
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
