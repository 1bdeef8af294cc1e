"""How much device memory a training step takes at its peak: a closed formula over shapes. Bytes throughout.

Nothing in it is fitted to measurements. Each term is a tensor that PyTorch or a library is known to hold, at one of
six moments: at the end of the forward, while the loss, the last block, the first block and the embeddings are
differentiated, and while the optimizer steps; and where answers are generated at a seventh. The estimate is the largest
of them. What autograd saves of a block was read off the code of transformers, PEFT, litgpt and torchtune, and is held
against real training steps in `tests/app/planning`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "head"]
"""A linear layer of a decoder; `up` and `down` alone where the MLP has no gate."""
Moment = Literal["forward", "loss", "last block", "first block", "embeddings", "backward", "optimizer", "generation"]
"""Of a step: where the formula looks, and `backward` for what a dry run finds in between."""
Weights = Literal["fp32", "bf16", "fp16", "int8", "nf4", "nf4_double"]
ATTENTION: tuple[Role, ...] = ("q", "k", "v", "o")
MLP: tuple[Role, ...] = ("gate", "up", "down")

NF4 = 0.5 + 4 / 64
"""Bytes a parameter: four bits, and an fp32 constant for each block of 64 (QLoRA, Dettmers et al. 2023, section 3)."""
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The same with constants of eight bits, 256 of which share an fp32 one: 0.516."""
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": NF4, "nf4_double": NF4_DOUBLE}

FULL_LOSS = 12.0
"""Bytes a logit in fp32 cross-entropy's backward: the log-probabilities, their gradient, and that of the logits."""
CONTEXT_BYTES = 500 * 1024**2
"""Of a CUDA context, which PyTorch does not count: 0.3 to 1 GB by GPU and driver."""
SLACK = 0.05
"""Of what comes and goes in a step: blocks that the caching allocator holds and cannot use (3 to 8 % as published)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder, dense or of experts."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool = False
    gated_mlp: bool = True
    norm: Literal["rms", "layer"] = "rms"
    num_experts: int = 0
    """0: dense. The router and each expert's MLP are in every block."""
    experts_per_token: int = 0
    positions: int = 0
    """Learned ones, each a vector of the hidden size."""
    fused: tuple[tuple[Role, ...], ...] = ()
    """Groups of roles that one layer plays, with one adapter."""
    total_params: int | None = None
    """Where it is known; else what the shapes make."""

    @property
    def query_size(self) -> int:
        """Of all heads' queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Of the keys of all groups, and of their values."""
        return self.num_kv_heads * self.head_dim

    def linear(self, role: Role) -> tuple[int, int]:
        """Inputs and outputs of a linear layer."""
        return {
            "q": (self.hidden_size, self.query_size),
            "k": (self.hidden_size, self.kv_size),
            "v": (self.hidden_size, self.kv_size),
            "o": (self.query_size, self.hidden_size),
            "gate": (self.hidden_size, self.intermediate_size),
            "up": (self.hidden_size, self.intermediate_size),
            "down": (self.intermediate_size, self.hidden_size),
            "head": (self.hidden_size, self.vocab_size),
        }[role]

    @property
    def mlp(self) -> tuple[Role, ...]:
        """The layers that its MLP has."""
        return MLP if self.gated_mlp else ("up", "down")

    @property
    def block_params(self) -> int:
        """Parameters of the linear layers of one block; those of all experts."""
        attention = sum(_size(self, role) for role in ATTENTION)
        mlp = sum(_size(self, role) for role in self.mlp)
        return attention + mlp * max(1, self.num_experts) + self.hidden_size * self.num_experts

    @property
    def vocabulary_params(self) -> int:
        """Of the embeddings, or of the output layer."""
        return self.vocab_size * self.hidden_size

    @property
    def params(self) -> int:
        """All of them."""
        if self.total_params is not None:
            return self.total_params
        norms = (2 * self.num_layers + 1) * self.hidden_size * (1 if self.norm == "rms" else 2)
        vocabulary = self.vocabulary_params * (1 if self.tied_embeddings else 2)
        return self.block_params * self.num_layers + vocabulary + norms + self.positions * self.hidden_size


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How it is trained: the conditions of a step, and the habits of the libraries that take it."""

    tuning: Literal["full", "lora", "qlora"]
    micro_batch: int
    length: int
    """Tokens of a row, or of a pack."""
    weights: Weights = "bf16"
    """How the base lies in memory; of 4 and 8 bits, embeddings, norms and the output layer have 16."""
    head_quantized: bool = False
    """Whether the output layer has so few bits too, as in litgpt."""
    compute: Literal["fp32", "bf16", "fp16"] = "bf16"
    autocast: bool = False
    """Whether linear layers compute in 16 bits under weights of 32, which keeps a copy of each weight in 16."""
    trained: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How trained parameters and their gradients lie in memory."""
    state_bytes: float = 8.0
    """Optimizer states a trained parameter: 8 for Adam in fp32, 4 in bf16, some 2 in 8 bits."""
    step_bytes: float = 0.0
    """What a step of the optimizer holds beside them, a trained parameter: the square root of the second moment in
    torch's foreach AdamW, so half of the states; nothing where it is fused, or goes layer by layer."""
    vocabulary_state_bytes: float | None = None
    """The same of embeddings that are trained, where it differs: transformers keeps their states in fp32 in optimizers
    of 8 bits, and so those of an output layer that is the embeddings."""
    states_in_host_memory: bool = False
    """Paged states, or an offloaded optimizer."""
    optimizer_in_backward: bool = False
    """Each gradient is used and freed as soon as it is there."""
    accumulates: bool = False
    """More than one micro-batch a step: gradients lie there while the next one runs."""
    rank: int = 0
    targets: frozenset[Role] = frozenset()
    dropout: bool = False
    mask_bytes: float = 1.0
    """A number that dropout may drop; on a CPU, PyTorch's mask is as wide as the number."""
    use_dora: bool = False
    trains_embeddings: bool = False
    """`modules_to_save` with the embeddings: a copy of them, trained whole."""
    trains_head: bool = False
    """The same of the output layer. Where it is the embeddings, either is a copy of both."""
    saved_params: int = 0
    """Of other modules that are trained whole, likewise copies."""
    checkpointing: bool = False
    offloads_activations: bool = False
    """The inputs of blocks wait in host memory."""
    attention: Literal["flash", "eager"] = "flash"
    """Whether scores are kept; SDPA keeps none where there is no mask of floats."""
    repeats_kv: bool = False
    """Keys and values are copied for each query head."""
    masked: bool = False
    """SDPA is handed a mask, for rows of unlike length or those of a pack: of booleans for all blocks, and for each
    block in the type of the queries."""
    fused_qkv: bool = False
    """One layer makes all three, so that its whole output stays as long as the values do."""
    loss_bytes: float = FULL_LOSS
    """A logit, at the worst moment."""
    kept_logit_bytes: float = 0.0
    """A logit that somebody holds while the loss is differentiated: its 2 bytes, or 4 where they were made fp32."""
    loss_rows: float = 1.0
    """Share of the tokens that logits are computed for."""
    loss_tile: tuple[int, int] | None = None
    """Tokens and columns of the vocabulary that logits are computed for at a time, as TRL does from 1.16 on. Beside
    them there are the gradients in fp32 of the output layer's input, and of its weights where they are trained."""
    head_calls: int = 1
    """How often a batch calls the output layer, by chunks of its tokens. Under autocast each call copies its weights,
    unless they are trained: autocast remembers the copies of those alone."""
    tile_copies: int = 0
    """How often a tile is there in fp32 as well: not at all where a Triton kernel works in place."""
    compiled: bool = False
    """Fused pointwise kernels compute again in the backward what is cheap."""
    unties_embeddings: bool = False
    """The output layer is a copy of embeddings that the model's files hold once."""
    shares_inputs: bool = False
    """Adapters take a layer's input as it is, and those of layers with the same input keep it once: PEFT's on layers of
    4 bits under CUDA's autocast. Elsewhere it gives each adapter a copy in the adapter's own type."""
    quantized_inputs_kept: bool = False
    """4-bit layers keep their input though nothing needs it, as those of bitsandbytes before 0.43 did."""
    buckets: bool = False
    """Gradients lie there twice, the second time in the buckets of DistributedDataParallel."""
    reference: bool = False
    """A copy of the base lies beside it, which does not move."""
    generated: int = 0
    """Sequences that are generated side by side before a step, up to `length` tokens."""
    prompt_length: int = 0
    """Tokens of each that are there before."""
    scores: bool = False
    """A reward model: a number for each row in place of logits, from a layer that is trained whatever the tuning."""
    shards: int = 1
    """GPUs that weights, gradients and states are spread over (FSDP, ZeRO-3)."""
    reserved: bool = False
    """Count what the allocator reserves, not only what tensors take."""
    context: bool = False
    """Count the CUDA context, as `nvidia-smi` does."""

    @property
    def moves_vocabulary(self) -> bool:
        """Whether the output layer's own weights are trained."""
        return self.tuning == "full" or self.trains_head


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
    """The copy of the base that a full model is compared with."""
    cache: float = 0.0
    """Keys and values of what is generated."""
    by_moment: dict[str, float] = field(default_factory=dict)
    """The sum at each of them, without slack and context."""

    @property
    def total(self) -> float:
        """All of it."""
        held = self.weights + self.reference + self.quantization + self.adapter + self.gradients + self.optimizer
        return held + self.cache + self.activations + self.loss + self.temporary + self.slack + self.context


def trained_params(shape: ModelShape, setup: TrainingSetup) -> int:
    """How many parameters move. Of LoRA (Hu et al. 2021): rank × (inputs + outputs) of each target."""
    if setup.tuning == "full":
        return _params(shape, setup)
    layers = (*ATTENTION, *(() if shape.num_experts else shape.mlp))
    per_block = sum(_adapter(shape, setup, role) for role in setup.targets.intersection(layers))
    if shape.num_experts and setup.targets.issuperset(shape.mlp):
        per_block += _expert_adapters(shape, setup.rank)
    for group in shape.fused:  # whose input an adapter reads once
        shared = len(setup.targets.intersection(group)) - 1
        per_block -= max(0, shared) * setup.rank * shape.linear(group[0])[0]
    head = _adapter(shape, setup, "head") if "head" in setup.targets else 0
    tied = shape.tied_embeddings and not setup.unties_embeddings
    vocabularies = setup.trains_embeddings + setup.trains_head
    saved = shape.vocabulary_params * (min(vocabularies, 1) if tied else vocabularies) + setup.saved_params
    scores = shape.hidden_size if setup.scores else 0
    return per_block * shape.num_layers + head + saved + scores


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
    mask = _mask(setup)
    block = tokens * _block(shape, setup) + mask
    boundary = tokens * _boundary(shape, setup)
    copies = _copies(shape, setup)
    kept = boundary * shape.num_layers if setup.checkpointing else block * shape.num_layers
    if setup.offloads_activations and setup.checkpointing:
        kept = 2 * boundary  # the one in use, and the next on its way
    kept += mask / BYTES[setup.compute]
    ends = tokens * _ends(shape, setup)
    again = block if setup.checkpointing else 0.0
    working = tokens * _gradients_of_block(shape, setup) + _unpacked(shape, setup)
    working = gathered + max(working, _norms_of_dora(shape, setup))
    logits = tokens * setup.loss_rows * shape.vocab_size * setup.kept_logit_bytes

    moments: dict[Moment, dict[str, float]] = {
        "forward": {
            "gradients": gradients if setup.accumulates else 0.0,
            "activations": kept + ends + copies["forward"],
            "loss": min(_loss_forward(shape, setup), _loss(shape, setup)),
            "temporary": gathered,
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
        "reference": weights if setup.reference else 0.0,
        "quantization": constants,
        "adapter": 0.0 if setup.tuning == "full" else trained * BYTES[setup.trained],
        "optimizer": 0.0 if setup.states_in_host_memory else _states(shape, setup, trained),
    }
    return {name: size / setup.shards for name, size in held.items()}


def evaluation(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes at the peak of an evaluation between two steps, whose batches are `micro_batch` rows of `length` tokens.

    What training holds lies there but gradients; nothing is kept of a block but what goes to the next one.
    """
    compute, tokens = BYTES[setup.compute], setup.micro_batch * setup.length
    middle = shape.intermediate_size * (3 if shape.gated_mlp else 2) * max(1, shape.experts_per_token)
    # Residual, the normed input, and the MLP's middle; or before the first block two norms' copies in fp32.
    block = tokens * (middle * compute + 2 * shape.hidden_size * _stream(setup))
    loss = 0.0 if setup.scores else _loss_forward(shape, setup)
    copies = 0.0
    if setup.tuning == "full" and setup.autocast and setup.weights == "fp32":  # each is kept until the batch is over
        copies = (shape.block_params * shape.num_layers + shape.vocabulary_params) * 2.0
    last = tokens * shape.hidden_size * (_stream(setup) + compute)
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
    prompts = sequences * setup.prompt_length * (middle * compute + 4 * shape.hidden_size * _stream(setup) + wide)
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
        return tokens * shape.vocab_size * 8.0  # logits in fp32, and their log-probabilities
    rows, columns = min(tokens, setup.loss_tile[0]), setup.loss_tile[1]
    copies = min(setup.tile_copies, 2) * 4.0 * min(columns, shape.vocab_size)  # in fp32, and as probabilities
    return rows * (BYTES[setup.compute] * columns + copies)


def _size(shape: ModelShape, role: Role) -> int:
    inputs, outputs = shape.linear(role)
    return inputs * outputs


def _adapter(shape: ModelShape, setup: TrainingSetup, role: Role) -> int:
    inputs, outputs = shape.linear(role)
    magnitude = outputs if setup.use_dora else 0  # DoRA, Liu et al. 2024: one number an output
    return setup.rank * (inputs + outputs) + magnitude


def _expert_adapters(shape: ModelShape, rank: int) -> int:
    """On the two tensors in which transformers 5 holds all experts, gate and up as one; and on the router.

    PEFT (0.21) gives the one of two layers twice the rank, so that it can do what two adapters could.
    """
    hidden, middle = shape.hidden_size, shape.intermediate_size
    opens, closes = 2 * rank * (hidden + 2 * middle), rank * (middle + hidden)
    return shape.num_experts * (opens + closes) + rank * (hidden + shape.num_experts)


def _params(shape: ModelShape, setup: TrainingSetup) -> int:
    """Of the model as it is trained: a reward model's output layer is one row."""
    if setup.scores:
        return shape.params + shape.hidden_size - (0 if shape.tied_embeddings else shape.vocabulary_params)
    return shape.params + (shape.vocabulary_params if shape.tied_embeddings and setup.unties_embeddings else 0)


def _weights(shape: ModelShape, setup: TrainingSetup) -> tuple[float, float]:
    """The base's, and of 4-bit ones the constants."""
    params = _params(shape, setup)
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
        return max(shape.vocabulary_params, _size(shape, "up")) * BYTES[setup.trained]
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
    return max(_size(shape, role) for role in (*ATTENTION, *shape.mlp)) * 2.0


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
    holds it itself, until the forward ends, and no second call makes another (PyTorch's `autocast_mode.cpp`).
    """
    if not setup.autocast or setup.weights != "fp32":
        return {"forward": 0.0, "loss": 0.0, "last block": 0.0, "first block": 0.0}
    block = shape.block_params * 2.0
    all_blocks = block * shape.num_layers
    head = 0.0  # a tile of the loss copies its own columns
    if setup.loss_tile is None and not setup.scores:
        head = shape.vocabulary_params * 2.0 * (1 if setup.moves_vocabulary else setup.head_calls)
    held = 0.0 if setup.checkpointing else all_blocks
    return {
        "forward": (all_blocks if setup.tuning == "full" else held) + head,
        "loss": held + head,
        "last block": held or block,
        "first block": block,
    }


def _mask(setup: TrainingSetup) -> float:
    """Of one block, in the type of the queries."""
    return setup.micro_batch * setup.length**2 * BYTES[setup.compute] if setup.masked else 0.0


def _norms_of_dora(shape: ModelShape, setup: TrainingSetup) -> float:
    """While DoRA takes the norms of a layer's weights, as PEFT (0.21) does.

    It makes the adapter's own weights of a unit matrix, which their graph keeps in the type of computing; then there
    are those, the layer's in the same type, what is added to them, and the sum.
    """
    layers = [role for role in setup.targets if role != "head"]
    if not setup.use_dora or not layers:
        return 0.0
    computed = BYTES[setup.compute] if setup.autocast else BYTES[setup.trained]
    unit = BYTES[setup.trained] + (computed if setup.autocast else 0.0)
    own = 0.0 if setup.weights == setup.trained else BYTES[setup.trained]
    found = 0.0
    for role in layers:
        side, size = shape.linear(role)[0] ** 2, _size(shape, role)
        found = max(found, side * unit, side * computed + size * (3 * BYTES[setup.trained] + own))
    return found


def _stream(setup: TrainingSetup) -> float:
    """Bytes a number of what goes from block to block: under autocast what the embeddings have."""
    wide = setup.weights == "fp32" or (setup.trains_embeddings and setup.trained == "fp32")
    return 4.0 if setup.autocast and wide else BYTES[setup.compute]


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


def _boundary(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token that checkpointing keeps of a block: its input."""
    return shape.hidden_size * _stream(setup)


def _ends(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token before the first and after the last block: the last norm, and the output layer's input."""
    norm = _norm(shape, setup)
    trained = setup.moves_vocabulary or "head" in setup.targets
    return norm + shape.hidden_size * BYTES[setup.compute] * (2 if trained else 1)


def _norm(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token that a norm keeps."""
    width = shape.hidden_size
    if setup.compiled or shape.norm == "layer":
        return width * _stream(setup)  # its input, which is the residual
    kept = 4.0 * width  # RMSNorm computes in fp32, and keeps that copy
    if setup.tuning == "full":
        kept += width * _stream(setup)  # for its weight's gradient
    return kept


def _block(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token that autograd keeps of one block."""
    compute = BYTES[setup.compute]
    query, kv = shape.query_size, shape.query_size if setup.repeats_kv else shape.kv_size
    kept = 2 * _norm(shape, setup)
    kept += _input(shape, setup, ("q", "k", "v"))
    kept += (2 * query + 2 * kv) * compute + 4 * shape.num_heads  # what attention keeps, and the sums of its scores
    if setup.fused_qkv and not (setup.repeats_kv and shape.kv_size != query):
        kept += (query + shape.kv_size) * compute
    if setup.attention == "eager":
        kept += shape.num_heads * setup.length * (4 + 2 * compute)  # softmax in fp32, in 16 bits, and with dropout
    if setup.tuning != "full":
        kept += _input(shape, setup, ("o",), already=True)
    return kept + _mlp(shape, setup)


def _mlp(shape: ModelShape, setup: TrainingSetup) -> float:
    compute = BYTES[setup.compute]
    width = shape.intermediate_size * compute
    opens: tuple[Role, ...] = ("gate", "up") if shape.gated_mlp else ("up",)
    # Compiled, the activation is computed again; the product is not, where a weight's gradient needs it.
    each = (3 if shape.gated_mlp and not setup.compiled else len(opens)) * width + _input(shape, setup, ("down",))
    each += _input(shape, setup, opens)
    if not shape.num_experts:
        return each
    # Each token's row is copied to each of its experts, and weighed when it comes back.
    routed = each + 2 * shape.hidden_size * compute
    return shape.experts_per_token * routed + shape.num_experts * (4.0 + compute)


def _input(shape: ModelShape, setup: TrainingSetup, roles: tuple[Role, ...], *, already: bool = False) -> float:
    """Bytes a token that layers with the same input keep of it; `already`: as it is, it is kept in any case."""
    compute = BYTES[setup.compute]
    width = shape.linear(roles[0])[0]
    if setup.tuning == "full":
        # Under autocast each layer makes 16 bits of an input in fp32 for itself; what attention and MLP make has them.
        copies = len(roles) if _stream(setup) > compute and roles[0] not in ("o", "down") else 1
        return copies * width * compute
    if setup.quantized_inputs_kept:
        return (0.0 if already else width * compute) + _adapters(shape, setup, roles, already=True)
    return _adapters(shape, setup, roles, already=already)


def _adapters(shape: ModelShape, setup: TrainingSetup, roles: tuple[Role, ...], *, already: bool) -> float:
    """The same for what adapters keep of it, and in their middle."""
    compute = BYTES[setup.compute]
    width = shape.linear(roles[0])[0]
    hit = [role for role in roles if role in setup.targets]
    if not hit:
        return 0.0
    computed = compute if setup.autocast else max(compute, BYTES[setup.trained])
    adapters = len(hit) * setup.rank * (compute if setup.autocast else BYTES[setup.trained])
    if setup.use_dora:  # the gradient of the magnitude needs what the layer and the adapter made
        adapters += sum(shape.linear(role)[1] for role in hit) * (compute + computed)
    inputs = 1 if setup.fused_qkv and roles[0] == "q" else len(hit)
    if setup.dropout:  # for each its own: what is left, and the mask
        return adapters + inputs * width * (computed + setup.mask_bytes)
    if (
        BYTES[setup.trained] > compute and not setup.shares_inputs
    ):  # PEFT gives adapters their input in their own type: a copy for each
        return adapters + inputs * width * computed
    return adapters + (0.0 if already else width * compute)


def _gradients_of_block(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token while a block is differentiated: gradients of the MLP's middle, and of the residual."""
    compute = BYTES[setup.compute]
    middle = shape.intermediate_size * (3 if shape.gated_mlp else 2) * max(1, shape.experts_per_token)
    return middle * compute + 2 * shape.hidden_size * _stream(setup)
