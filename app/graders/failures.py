"""Why a grader could not grade a sample: an answer with flags, never an HTTP error."""

from typing import Literal

Flag = Literal["formula_parse_error", "sample_parse_error", "invalid_variable_error", "other_error"]
"""Of OpenAI's flags, those that can be raised here."""


class NotGraded(Exception):
    """Something of the sample or of the item does not fit the grader; the reward is 0."""

    def __init__(self, message: str, *flags: Flag) -> None:
        super().__init__(message)
        self.message = message
        self.flags = flags
