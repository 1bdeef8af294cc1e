"""From exceptions to what the job's owner is told: code, cause, remedy, and whether another attempt could help."""

import json
import traceback
from pathlib import Path
from typing import ClassVar

from app import disks
from app.failures import Code
from app.files.report import FileName
from app.registry import identity
from worker.messages import Failed, NoSpace
from worker.training.base import BaseChanged, BaseNotFound
from worker.training.templates import TemplateUnusable


class FileUnusable(Exception):
    """An uploaded file cannot be trained on; `name` is the spec's name for it."""

    def __init__(self, name: FileName, message: str) -> None:
        super().__init__(message)
        self.name = name


class SpecUnusable(Exception):
    """A field of the spec does not fit the base; `param` is its path."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TargetModulesUnusable(Exception):
    """`tuning.target_modules` names layers that the base does not have."""


class PackingNotSupported(Exception):
    """The base model lets the rows of a pack see each other."""


class MethodNotSupported(Exception):
    """The installed libraries cannot train by this method."""


OUT_OF_HOST_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory")
OUT_OF_MEMORY = (*OUT_OF_HOST_MEMORY, "out of memory", "ALLOC_FAILED")
"""What torch says of an allocation that failed: its own, and those that CUDA or a library of it made."""


class TrainingSpoilt(Exception):
    """A run went wrong and stopped by itself; each kind has its code."""

    code: ClassVar[Code]


class LossNotFinite(TrainingSpoilt):
    """A step's loss, or its gradient, was NaN or infinite."""

    code: ClassVar[Code] = "loss_not_finite"


class LossIsZero(TrainingSpoilt):
    """Nothing is learnt any more, or never was."""

    code: ClassVar[Code] = "loss_is_zero"


class GradientExploded(TrainingSpoilt):
    """The gradient's norm grew out of all proportion, and stayed there."""

    code: ClassVar[Code] = "gradient_exploded"


class LossDiverged(TrainingSpoilt):
    """The loss rose above where it began, and stayed there."""

    code: ClassVar[Code] = "loss_diverged"


OF_FILES: dict[FileName, Code] = {
    "training_file": "invalid_training_file",
    "validation_file": "invalid_validation_file",
}


class DoesNotFit(Exception):
    """A job ran out of its device's memory; `param` is what to change first.

    `retryable`: its next attempt takes less.
    """

    def __init__(self, message: str, param: str, *, suggestion: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.param = param
        self.suggestion = suggestion
        self.retryable = retryable


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the machine's memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)


def last_word(error: BaseException, work_dir: Path) -> Failed | NoSpace:
    """What a trainer tells its worker of an exception that ends it."""
    if isinstance(error, disks.NoSpace):
        return NoSpace(error.needed_bytes)
    if disks.is_full(error, work_dir):
        return NoSpace()
    return classify(error, method_in(work_dir))


def classify(error: BaseException, method: str) -> Failed:
    """Anything that can end a trainer, as the message that says so. `method`: the type of the spec's."""
    hyperparameters = f"method.{method}.hyperparameters"
    match error:
        case FileUnusable(name=name):
            return Failed(code=OF_FILES[name], message=_sentence(error), param=name)
        case SpecUnusable(param=param):
            return Failed(code="invalid_value", message=_sentence(error), param=param)
        case BaseNotFound():
            return Failed(code="model_not_found", message=_sentence(error), param="model")
        case identity.UnusableBase():
            return Failed(code=error.code, message=f"The base model cannot be used: {error}", param="model")
        case TemplateUnusable():
            return Failed(code="invalid_chat_template", message=_sentence(error), param="model")
        case BaseChanged(suggestion=suggestion):
            return Failed(code="base_model_changed", message=_sentence(error), param="model", suggestion=suggestion)
        case DoesNotFit(param=param):
            return Failed(
                code="out_of_memory",
                message=_sentence(error),
                param=param,
                retryable=error.retryable,
                suggestion=error.suggestion,
            )
        case TargetModulesUnusable():
            return Failed(code="invalid_target_modules", message=_sentence(error), param="tuning.target_modules")
        case PackingNotSupported():
            return Failed(
                code="packing_not_supported",
                message=_sentence(error),
                param=f"{hyperparameters}.packing",
            )
        case MethodNotSupported():
            return Failed(code="method_not_supported", message=_sentence(error), param="method.type")
        case LossIsZero(code=code):
            return Failed(code=code, message=_sentence(error), param="training_file")
        case TrainingSpoilt(code=code):
            return Failed(code=code, message=_sentence(error), param=f"{hyperparameters}.learning_rate")
        case ConnectionError() | TimeoutError():
            return Failed(code="hub_unavailable", message=_sentence(error), param="model", retryable=True)
        case MemoryError():
            return _out_of_host_memory()
        case OSError(errno=int()):
            return Failed(
                code="storage_unavailable", message=f"The worker cannot read or write: {error}.", retryable=True
            )
        case _:
            return _of_torch(error, hyperparameters)


def _of_torch(error: BaseException, hyperparameters: str) -> Failed:
    """Torch's exceptions by name, so that preparing does not need torch to tell them."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return Failed(
            code="out_of_memory",
            message="The GPU ran out of memory.",
            param=f"{hyperparameters}.per_device_train_batch_size",
        )
    if isinstance(error, RuntimeError) and any(part in text for part in OUT_OF_HOST_MEMORY):
        return _out_of_host_memory()
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in text:
        return Failed(code="device_failed", message=f"The worker's GPU failed: {text}"[:2000], retryable=True)
    traceback.print_exception(error)
    return Failed(code="internal_error", message=f"{type(error).__name__}: {text}"[:2000])


def _out_of_host_memory() -> Failed:
    return Failed(code="out_of_host_memory", message="The worker's machine ran out of memory.", retryable=True)


def method_in(work_dir: Path) -> str:
    """Of the WORKDIR's job; what a job has by default where there is none that can be read."""
    try:
        method = json.loads((work_dir / "job.json").read_text())["method"]["type"]
    except (OSError, ValueError, KeyError, TypeError):
        method = None
    return method if isinstance(method, str) else "supervised"


def _sentence(error: BaseException) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
