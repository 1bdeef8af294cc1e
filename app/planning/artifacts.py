"""Bytes on disks: of an adapter's file, of a result, and of the checkpoints on the way to it. Pure."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning.bases import Tensors
from app.planning.step import BYTES, ModelShape, TrainingSetup, trained_params

SCRATCH_CHECKPOINTS = 4
"""That a worker's disk holds at most: the two newest, the best by validation loss, and the one being written
(`worker/checkpoints.py`)."""
STORED_STATES = 3
"""Optimizer's states in the storage while a job is not over: of the two newest checkpoints and the best
(`app/jobs/resume_states.py`). Their weights are those of the models beside them, which are stored once."""
ALL_BUT_WEIGHTS = 5_000_000
"""Bytes of a model that are not its weights: a tokenizer of some 100,000 words, and the run's own files."""
NOT_LINEAR = re.compile(r"(^|\.)(embed\w*|wte|wpe|word_embeddings\w*|lm_head|embed_out|shared)$")
"""Modules with a matrix that is no linear layer of a block."""
TRANSPOSED = frozenset({"gpt2", "gpt_bigcode"})
"""Families whose linear layers have their inputs first."""
LLAMA_LAYERS = {
    "self_attn": {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
    "mlp": {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"},
}
"""What most families call them since Llama."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Which of a job's checkpoints stay in the storage: the newest so many, the best, and every n-th step's."""

    newest: int
    every: int | None

    def most(self, steps: int) -> int:
        """That a job of so many steps can have at once."""
        return self.newest + 1 + (steps // self.every if self.every else 0)


def adapter_bytes(spec: JobSpec, shape: ModelShape, setup: TrainingSetup, tensors: Tensors, family: str) -> int:
    """Of `adapter_model.safetensors`, as PEFT writes it in fp32: exact for a dense base, by its tensors' names.

    Without them names are Llama's. Of a base of experts it is exact but for the header, some 100 bytes a tensor.
    """
    assert isinstance(spec.tuning, LoraTuning)  # noqa: S101  nothing else has one
    trained = trained_params(shape, setup)
    if shape.num_experts:
        return int(4 * trained + 100 * 2 * len(setup.targets) * shape.num_layers)
    made = dict(_of_adapter(spec.tuning.published, tensors or _like_llama(shape), family))
    if shape.tied_embeddings and setup.trains_head:  # PEFT writes the one weight twice
        made["base_model.model.lm_head.weight"] = (shape.vocab_size, shape.hidden_size)
    if setup.scores:
        made["base_model.model.score.weight"] = (1, shape.hidden_size)
    return safetensors_bytes(made)


def safetensors_bytes(tensors: Tensors, *, dtype: str = "F32", width: int = 4) -> int:
    """Of a file with these tensors: eight bytes, a JSON header padded to a multiple of eight, and the numbers.

    https://github.com/huggingface/safetensors#format; tensors of one dtype lie in the order of their names.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + width * math.prod(tensors[name])
        header[name] = {"dtype": dtype, "shape": list(tensors[name]), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def result_bytes(shape: ModelShape, setup: TrainingSetup, adapter: int | None) -> int:
    """Of what is published: an adapter, or all weights in 16 bits, which bases are published in; with a tokenizer."""
    weights = adapter if adapter is not None else 2 * trained_params(shape, setup)
    return weights + ALL_BUT_WEIGHTS


def scratch_bytes(shape: ModelShape, setup: TrainingSetup, result: int) -> int:
    """Of a worker's disk while it trains: checkpoints with the optimizer's states, and the result."""
    return SCRATCH_CHECKPOINTS * checkpoint_bytes(shape, setup) + result


def checkpoint_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Of one that training goes on from: what is trained, and the optimizer's states."""
    return int(trained_params(shape, setup) * (BYTES[setup.trained] + setup.state_bytes)) + ALL_BUT_WEIGHTS


def stored_bytes(spec: JobSpec, shape: ModelShape, setup: TrainingSetup, result: int, checkpoints: int) -> int:
    """Of the storage: the result, and the model of each checkpoint; of a full model those are in fp32.

    And until the job is over what it would go on from.
    """
    taken = isinstance(spec.tuning, LoraTuning) and spec.tuning.takes_from_base
    weights = trained_params(shape, setup) * BYTES["fp32"] * (2 if taken else 1) + ALL_BUT_WEIGHTS
    states = min(checkpoints, STORED_STATES) * trained_params(shape, setup) * setup.state_bytes
    return int(result + checkpoints * weights + states)


def checkpoints(spec: JobSpec, steps: int, *, evaluates: bool) -> int:
    """How many are published on the way, if every evaluation finds the best step so far, which is saved then.

    Without `save_steps` one an epoch, if none takes more than ten minutes.
    """
    given = spec.hyperparameters
    epochs = min(resolved(given.n_epochs), steps)
    ends = {-(-steps * epoch // epochs) for epoch in range(1, epochs + 1)}
    saved = ends if given.save_steps == "auto" else {*range(given.save_steps, steps, given.save_steps), steps}
    evaluated = ends if given.eval_steps == "auto" else {*range(given.eval_steps, steps, given.eval_steps), steps}
    return len(saved | evaluated if evaluates else saved)


def _of_adapter(tuning: LoraTuning, tensors: Tensors, family: str) -> Iterable[tuple[str, tuple[int, ...]]]:
    rank = resolved(tuning.r)
    for name, size in tensors.items():
        module, _, of_it = name.rpartition(".")
        if _is_named(module, tuning.modules_to_save):
            yield f"base_model.model.{name}", size
            continue
        if len(size) != 2 or of_it != "weight" or NOT_LINEAR.search(module) or not _is_target(module, tuning):
            continue
        outputs, inputs = reversed(size) if family in TRANSPOSED else size
        yield f"base_model.model.{module}.lora_A.weight", (rank, inputs)
        yield f"base_model.model.{module}.lora_B.weight", (outputs, rank)
        if tuning.use_dora:
            yield f"base_model.model.{module}.lora_magnitude_vector", (outputs,)


def _is_target(module: str, tuning: LoraTuning) -> bool:
    if tuning.target_modules == "all-linear":
        return True
    return _is_named(module, tuning.target_modules)


def _is_named(module: str, names: Iterable[str]) -> bool:
    return any(module == wanted or module.endswith(f".{wanted}") for wanted in names)


def _like_llama(shape: ModelShape) -> Tensors:
    words = (shape.vocab_size, shape.hidden_size)
    ends = {"model.embed_tokens.weight": words} | ({} if shape.tied_embeddings else {"lm_head.weight": words})
    return ends | {
        f"model.layers.{layer}.{part}.{name}.weight": (outputs, inputs)
        for layer in range(shape.num_layers)
        for part, layers in LLAMA_LAYERS.items()
        for name, role in layers.items()
        if part == "self_attn" or role in shape.mlp
        for inputs, outputs in (shape.linear(role),)  # type: ignore[arg-type]  # the roles of a block
    }
