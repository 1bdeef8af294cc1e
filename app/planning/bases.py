"""A base model, as its files describe it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.planning.shapes import NotPlannable
from app.planning.step import ModelShape

Tensors = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Base:
    """What a `config.json` says."""

    model_type: str
    hidden_size: int
    context_length: int
    shape: ModelShape | None
    """None where the memory formula does not know such models."""
    unknown: str | None = None
    """What it has that the formula does not know."""
    tensors: Tensors = field(default_factory=dict)
    """Shapes by name, of the headers of its weights; empty where there is a config alone."""
    goes_on: bool = False
    """Whether what is trained is an adapter of it that there is already."""

    @property
    def known_shape(self) -> ModelShape:
        """Raises `NotPlannable` where there is none."""
        if self.shape is None:
            raise NotPlannable(self.unknown or "its shape is not known.")
        return self.shape
