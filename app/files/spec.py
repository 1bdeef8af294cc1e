"""What of a request decides which tokens of a file are trained on: a job's spec has it among other things, and a report
is asked for with nothing else.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.files.findings import Code

Auto = Literal["auto"]
Method = Literal["supervised", "continued_pretraining", "dpo", "kto", "orpo", "simpo", "reward", "reinforcement"]
HoldoutShare = Annotated[float, Field(ge=0, le=0.5)]
AUTO_HOLDOUT = 0.1
"""Of the rows, where there are `ROWS_FOR_HOLDOUT`; fewer give no loss that says much, and are missed in training."""
ROWS_FOR_HOLDOUT = 100


class DataSpec(BaseModel):
    """How a file's rows become tokens with labels, for one base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    method: Method = "supervised"
    train_on: Literal["completion", "all"] = "completion"
    max_length: Auto | int = "auto"
    truncate: bool = False
    packing: Auto | bool = "auto"
    per_device_train_batch_size: int = Field(2, description="Rows that are padded together where nothing is packed.")
    most_rows_per_pack: int = Field(16, description="A pack is at most a step of the recipe, however short its rows.")
    holdout: Auto | HoldoutShare = "auto"
    room_behind: Auto | int = Field(0, description="Tokens that are kept free behind each row, for an answer.")
    item_paths: tuple[str, ...] = Field((), description="What a grader reads of each row, such as `answers[0].text`.")

    @property
    def sha256(self) -> str:
        """Of all but the model, whose tokenizer counts and not its name."""
        return hashlib.sha256(self.model_dump_json(exclude={"model"}).encode()).hexdigest()

    def held_out_of(self, rows: int) -> float:
        """The share of so many rows that is not trained on."""
        if self.holdout == "auto":
            return AUTO_HOLDOUT if rows >= ROWS_FOR_HOLDOUT else 0.0
        return self.holdout


class DataPolicy(BaseModel):
    """What the operator wants of data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refuse_above: dict[Code, float] = Field({}, description="Shares of rows above which findings of a kind refuse.")
    benchmarks: str | None = Field(None, description="Folder of files that no training row shall be from.")
