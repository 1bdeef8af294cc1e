"""A training step in shapes and words: the model, how it is trained, and how many parameters move."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "head"]
"""A linear layer of a decoder; `up` and `down` alone where the MLP has no gate."""
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
    keeps_scores: bool = False
    """Its attention is no SDPA's, which keeps no scores."""
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

    def size(self, role: Role) -> int:
        """Parameters of a linear layer, without a bias."""
        inputs, outputs = self.linear(role)
        return inputs * outputs

    @property
    def mlp(self) -> tuple[Role, ...]:
        """The layers that its MLP has."""
        return MLP if self.gated_mlp else ("up", "down")

    @property
    def block_params(self) -> int:
        """Parameters of the linear layers of one block; those of all experts."""
        attention = sum(self.size(role) for role in ATTENTION)
        mlp = sum(self.size(role) for role in self.mlp)
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
    forward_logit_bytes: float = 8.0
    """The same of a loss without gradients: logits in fp32, and their log-probabilities."""
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
    copies_adapter: bool = False
    """The same of an adapter."""
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


def trained_params(shape: ModelShape, setup: TrainingSetup) -> int:
    """How many parameters move. Of LoRA (Hu et al. 2021): rank × (inputs + outputs) of each target."""
    if setup.tuning == "full":
        return held_params(shape, setup)
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


def held_params(shape: ModelShape, setup: TrainingSetup) -> int:
    """Of the model as it is trained: a reward model's output layer is one row."""
    if setup.scores:
        return shape.params + shape.hidden_size - (0 if shape.tied_embeddings else shape.vocabulary_params)
    return shape.params + (shape.vocabulary_params if shape.tied_embeddings and setup.unties_embeddings else 0)
