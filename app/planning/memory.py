"""How much device memory a training step takes at its peak: a closed formula over shapes. Bytes throughout.

Nothing in it is fitted to measurements. Each term is a tensor that PyTorch or a library is known to hold, at one of
six moments: at the end of the forward, while the loss, the last block, the first block and the embeddings are
differentiated, and while the optimizer steps; and where answers are generated at a seventh. The estimate is the largest
of them. What autograd saves of a block was read off the code of transformers, PEFT, litgpt and torchtune, and is held
against real training steps in `tests/app/planning`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from app.planning import activations
from app.planning.step import ATTENTION, BYTES, ModelShape, TrainingSetup, held_params, trained_params

Moment = Literal["forward", "loss", "last block", "first block", "embeddings", "backward", "optimizer", "generation"]
"""Of a step: where the formula looks, and `backward` for what a dry run finds in between."""
CONTEXT_BYTES = 500 * 1024**2
"""Of a CUDA context, which PyTorch does not count: 0.3 to 1 GB by GPU and driver."""
SLACK = 0.05
"""Of what comes and goes in a step: blocks that the caching allocator holds and cannot use (3 to 8 % as published)."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the peak, and what they are."""

    moment: Moment
    weights: float
    quantization: float
    """Constants of 4-bit weights."""
    adapter: float
    """Trained parameters that are no base weights."""
    gradients: float
    optimizer: float
    activations: float
    loss: float
    """Logits and what their loss holds."""
    temporary: float
    slack: float = 0.0
    context: float = 0.0
    reference: float = 0.0
    """What the model is compared with: a copy of a full one, or of an adapter that did not begin as nothing."""
    cache: float = 0.0
    """Keys and values of what is generated."""
    by_moment: dict[str, float] = field(default_factory=dict)
    """The sum at each of them, without slack and context."""

    @property
    def total(self) -> float:
        """All of it."""
        held = self.weights + self.reference + self.quantization + self.adapter + self.gradients + self.optimizer
        return held + self.cache + self.activations + self.loss + self.temporary + self.slack + self.context


def estimate(shape: ModelShape, setup: TrainingSetup) -> MemoryEstimate:
    """The peak of one training step on one GPU, after the first, so that the optimizer has its states."""
    trained = trained_params(shape, setup)
    held = _held(shape, setup)
    shards = setup.shards
    largest = _largest_gradient(shape, setup)
    gathered = _gathered(shape, setup)
    gradients = trained * BYTES[setup.trained] * (2 if setup.buckets else 1) / shards
    if setup.optimizer_in_backward:
        gradients = largest
    early = gradients if setup.accumulates else min(gradients, largest)
    tied = largest if setup.moves_vocabulary and shape.tied_embeddings and not setup.unties_embeddings else 0.0

    tokens = setup.micro_batch * setup.length
    mask = activations.mask(setup)
    block = tokens * activations.of_block(shape, setup) + mask
    boundary = tokens * activations.boundary(shape, setup)
    copies = _copies(shape, setup)
    kept = boundary * shape.num_layers if setup.checkpointing else block * shape.num_layers
    if setup.offloads_activations and setup.checkpointing:
        kept = 2 * boundary  # the one in use, and the next on its way
    kept += mask / BYTES[setup.compute]
    ends = tokens * activations.ends(shape, setup)
    again = block if setup.checkpointing else 0.0
    norms = activations.norms_of_dora(shape, setup)
    working = tokens * activations.gradients_of_block(shape, setup) + _unpacked(shape, setup)
    working = gathered + max(working, norms if setup.checkpointing else 0.0)
    logits = tokens * setup.loss_rows * shape.vocab_size * setup.kept_logit_bytes

    moments: dict[Moment, dict[str, float]] = {
        "forward": {
            "gradients": gradients if setup.accumulates else 0.0,
            "activations": kept + ends + copies["forward"],
            "loss": min(_loss_forward(shape, setup), _loss(shape, setup)),
            "temporary": gathered + norms,  # of the last block
        },
        "loss": {
            "gradients": gradients if setup.accumulates else 0.0,
            "activations": kept + ends + copies["loss"],
            "loss": _loss(shape, setup) + logits,
            "temporary": gathered,
        },
        "last block": {
            "gradients": early,
            "activations": kept + again + copies["last block"],
            "loss": logits,
            "temporary": working + tied,
        },
        "first block": {
            "gradients": gradients if setup.accumulates else max(early, gradients - _last_gradients(shape, setup)),
            "activations": (boundary if setup.checkpointing else block) + again + copies["first block"],
            "loss": logits,
            "temporary": working + tied,
        },
        "embeddings": {
            "gradients": gradients,
            "activations": 0.0,
            "loss": logits,
            # As a whole, whatever few rows were used. The output layer's is added where both are one, and then the sum
            # to what earlier micro-batches left.
            "temporary": (largest if setup.accumulates else 0.0) + 2 * tied,
        },
        "optimizer": {
            "gradients": gradients,
            "activations": 0.0,
            "loss": 0.0,
            "temporary": 0.0 if setup.optimizer_in_backward else trained * setup.step_bytes / shards,
        },
    }
    if setup.generated:
        moments["generation"] = _generating(shape, setup, setup.generated)
    sums = {name: sum(held.values()) + sum(parts.values()) for name, parts in moments.items()}
    moment = max(sums, key=lambda name: sums[name])
    parts = moments[moment]
    found = MemoryEstimate(moment=moment, **held, **parts, by_moment={str(name): one for name, one in sums.items()})
    if setup.reserved:
        comes_and_goes = sum(parts.values())
        found = replace(found, slack=SLACK * comes_and_goes)
    return replace(found, context=float(CONTEXT_BYTES)) if setup.context else found


def _held(shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
    """What lies there from the first step to the last, whatever is computed."""
    trained = trained_params(shape, setup)
    weights, constants = _weights(shape, setup)
    held = {
        "weights": weights,
        "reference": weights if setup.reference else _copied_adapter(shape, setup),
        "quantization": constants,
        "adapter": 0.0 if setup.tuning == "full" else trained * BYTES[setup.trained],
        "optimizer": 0.0 if setup.states_in_host_memory else _states(shape, setup, trained),
    }
    return {name: size / setup.shards for name, size in held.items()}


def _copied_adapter(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of modules that are trained whole it has copies in the base's own type."""
    if not setup.copies_adapter:
        return 0.0
    matrices = trained_params(
        shape, replace(setup, trains_embeddings=False, trains_head=False, saved_params=0, scores=False)
    )
    whole = trained_params(shape, setup) - matrices
    return matrices * BYTES[setup.trained] + whole * (4.0 if setup.weights == "fp32" else 2.0)


def evaluation(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes at the peak of an evaluation between two steps, whose batches are `micro_batch` rows of `length` tokens.

    What training holds lies there but gradients; nothing is kept of a block but what goes to the next one.
    """
    compute, tokens = BYTES[setup.compute], setup.micro_batch * setup.length
    middle = shape.intermediate_size * (3 if shape.gated_mlp else 2) * max(1, shape.experts_per_token)
    # Residual, the normed input, and the MLP's middle; or before the first block two norms' copies in fp32.
    block = tokens * (middle * activations.made(setup) + 2 * shape.hidden_size * activations.stream(setup))
    block = max(block, activations.norms_of_dora(shape, setup))
    loss = 0.0 if setup.scores else _loss_forward(shape, setup)
    copies = 0.0
    if setup.tuning == "full" and setup.autocast and setup.weights == "fp32":  # each is kept until the batch is over
        copies = (shape.block_params * shape.num_layers + shape.vocabulary_params) * 2.0
    last = tokens * shape.hidden_size * (activations.stream(setup) + compute)
    peak = (
        sum(_held(shape, setup).values())
        + copies
        + max(block + _gathered(shape, setup) + _unpacked(shape, setup), last + loss)
    )
    if setup.generated:  # each row's prompt is answered first
        peak = max(peak, sum(_held(shape, setup).values()) + sum(_generating(shape, setup, setup.micro_batch).values()))
    peak += SLACK * (block + loss) if setup.reserved else 0.0
    return peak + (CONTEXT_BYTES if setup.context else 0)


def _generating(shape: ModelShape, setup: TrainingSetup, sequences: int) -> dict[str, float]:
    """What lies there while answers are generated, by transformers' dynamic cache, beside what is held.

    Two vectors a token, block and group of heads (Pope et al. 2022, section 2.1). At the end a block's keys are there
    twice while a token's are appended, and for each query head where there is a mask. At the start the prompts go
    through a block at once, when the cache is filled as far as they reach. The last token's logits are there in fp32,
    with what sampling makes of them. TRL generates under autocast only where no adapter is around the model.
    """
    compute, tokens = BYTES[setup.compute], sequences * setup.length
    cache = 2.0 * shape.kv_size * shape.num_layers * compute * tokens
    appended = (shape.kv_size + (2 * shape.query_size if setup.repeats_kv else 0)) * compute * tokens
    middle = shape.intermediate_size * (3 if shape.gated_mlp else 2) * max(1, shape.experts_per_token)
    wide = 0.0  # what an adapter makes of its input, and its sum with what the layer makes, in the adapter's own type
    if setup.targets and BYTES[setup.trained] > compute:
        wide = 2 * BYTES[setup.trained] * max(shape.linear(role)[1] for role in setup.targets if role != "head")
    prompts = (
        sequences
        * setup.prompt_length
        * (middle * activations.made(setup) + 4 * shape.hidden_size * activations.stream(setup) + wide)
    )
    filled = cache * setup.prompt_length / setup.length
    if filled + prompts > cache + appended:
        cache, appended = filled, prompts
    copies = 0.0
    if setup.tuning == "full" and setup.autocast and setup.weights == "fp32":
        copies = (shape.block_params * shape.num_layers + shape.vocabulary_params) * 2.0
    return {
        "gradients": 0.0,
        "cache": cache,
        "activations": appended + copies,
        "loss": sequences * shape.vocab_size * 3 * 4.0,
        "temporary": _gathered(shape, setup) + _unpacked(shape, setup),
    }


def _loss_forward(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of a loss without gradients."""
    tokens = setup.micro_batch * setup.length * setup.loss_rows
    if setup.loss_tile is None:
        return tokens * shape.vocab_size * setup.forward_logit_bytes
    rows, columns = min(tokens, setup.loss_tile[0]), setup.loss_tile[1]
    copies = min(setup.tile_copies, 2) * 4.0 * min(columns, shape.vocab_size)  # in fp32, and as probabilities
    return rows * (BYTES[setup.compute] * columns + copies)


def _weights(shape: ModelShape, setup: TrainingSetup) -> tuple[float, float]:
    """The base's, and of 4-bit ones the constants."""
    params = held_params(shape, setup)
    if setup.weights not in ("nf4", "nf4_double", "int8"):
        return params * BYTES[setup.weights], 0.0
    few = shape.block_params * shape.num_layers
    if setup.head_quantized and (setup.unties_embeddings or not shape.tied_embeddings):
        few += shape.vocabulary_params
    packed = 1.0 if setup.weights == "int8" else 0.5
    return few * packed + (params - few) * 2.0, few * (BYTES[setup.weights] - packed)


def _largest_gradient(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of one parameter: the output layer's comes first, and is the largest in most models."""
    if setup.moves_vocabulary or setup.trains_embeddings:
        return max(shape.vocabulary_params, shape.size("up")) * BYTES[setup.trained]
    return 0.0


def _last_gradients(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of what is differentiated last: the first block, and embeddings that are no output layer as well."""
    if setup.tuning != "full":
        return 0.0
    last = shape.block_params + (0 if shape.tied_embeddings else shape.vocabulary_params)
    return last * BYTES[setup.trained] / setup.shards


def _gathered(shape: ModelShape, setup: TrainingSetup) -> float:
    """Whole weights of two blocks where they are spread: the one in use, and the next on its way."""
    if setup.shards == 1:
        return 0.0
    return 2 * shape.block_params * BYTES[setup.weights]


def _unpacked(shape: ModelShape, setup: TrainingSetup) -> float:
    """A layer's weights in 16 bits, which 4-bit ones are unpacked to for each use."""
    if setup.weights not in ("nf4", "nf4_double"):
        return 0.0
    return max(shape.size(role) for role in (*ATTENTION, *shape.mlp)) * 2.0


def _states(shape: ModelShape, setup: TrainingSetup, trained: int) -> float:
    """Of the optimizer, for all trained parameters."""
    moves = setup.tuning == "full" or setup.trains_embeddings
    if setup.vocabulary_state_bytes is None or not moves:
        return trained * setup.state_bytes
    few = shape.vocabulary_params
    return (trained - few) * setup.state_bytes + few * setup.vocabulary_state_bytes


def _copies(shape: ModelShape, setup: TrainingSetup) -> dict[Moment, float]:
    """Of weights in 16 bits, under autocast over weights of 32.

    Each call of a layer makes one, which the graph holds where nothing is computed again. Of trained weights autocast
    holds it itself, until the forward ends, and no second call makes another (PyTorch's `autocast_mode.cpp`). It does
    so for the reference too, which TRL computes after the model; of answers before it.
    """
    if not setup.autocast or setup.weights != "fp32":
        return {"forward": 0.0, "loss": 0.0, "last block": 0.0, "first block": 0.0}
    block = shape.block_params * 2.0
    all_blocks = block * shape.num_layers
    head = 0.0  # a tile of the loss copies its own columns
    if setup.loss_tile is None and not setup.scores:
        head = shape.vocabulary_params * 2.0 * (1 if setup.moves_vocabulary else setup.head_calls)
    held = 0.0 if setup.checkpointing else all_blocks
    forward = all_blocks if setup.tuning == "full" else held
    if setup.reference and not setup.generated:
        forward = held + all_blocks
    return {
        "forward": forward + head,
        "loss": held + head,
        "last block": held or block,
        "first block": block,
    }


def _loss(shape: ModelShape, setup: TrainingSetup) -> float:
    tokens = setup.micro_batch * setup.length * setup.loss_rows
    if setup.scores:
        return 0.0
    if setup.loss_tile is None:
        return tokens * shape.vocab_size * setup.loss_bytes
    rows, columns = min(tokens, setup.loss_tile[0]), setup.loss_tile[1]
    tile = BYTES[setup.compute] * columns  # as wide as it can be, whatever the vocabulary
    copies = setup.tile_copies * 4.0 * min(columns, shape.vocab_size)
    trained = setup.moves_vocabulary
    gradients = 4.0 * shape.hidden_size * (tokens + (shape.vocab_size if trained else 0))
    if setup.autocast and setup.weights == "fp32":
        gradients += min(columns, shape.vocab_size) * shape.hidden_size * BYTES[setup.compute]
    return rows * (tile + copies) + gradients
