"""What autograd keeps of a block, and what comes and goes while it is computed: bytes, a token's where not said else.

Read off the code of transformers, PEFT, litgpt and torchtune.
"""

from app.planning.step import BYTES, ModelShape, Role, TrainingSetup


def stream(setup: TrainingSetup) -> float:
    """Bytes a number of what goes from block to block: under autocast what the embeddings have.

    PEFT's DoRA leaves what a 4-bit layer makes in the type of its magnitude under CUDA's autocast, and that layer may
    be one that adds to it.
    """
    wide = setup.weights == "fp32" or (setup.trains_embeddings and setup.trained == "fp32")
    wide = wide or (setup.use_dora and setup.shares_inputs and not setup.targets.isdisjoint(("o", "down")))
    return 4.0 if setup.autocast and wide else BYTES[setup.compute]


def made(setup: TrainingSetup) -> float:
    """Bytes a number of what a block's linear layers make: 4-bit ones give it the type of their input."""
    four_bits = setup.weights in ("nf4", "nf4_double")
    return stream(setup) if four_bits else BYTES[setup.compute]


def boundary(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token that checkpointing keeps of a block: its input."""
    return shape.hidden_size * stream(setup)


def ends(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token before the first and after the last block: the last norm, and the output layer's input."""
    norm = _norm(shape, setup)
    trained = setup.moves_vocabulary or "head" in setup.targets
    return norm + shape.hidden_size * BYTES[setup.compute] * (2 if trained else 1)


def _norm(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token that a norm keeps."""
    width = shape.hidden_size
    if setup.compiled or shape.norm == "layer":
        return width * stream(setup)  # its input, which is the residual
    kept = 4.0 * width  # RMSNorm computes in fp32, and keeps that copy
    if setup.tuning == "full":
        kept += width * stream(setup)  # for its weight's gradient
    return kept


def of_block(shape: ModelShape, setup: TrainingSetup) -> float:
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
    width = shape.intermediate_size * made(setup)
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
        copies = len(roles) if stream(setup) > compute and roles[0] not in ("o", "down") else 1
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
    given = compute if roles[0] == "o" else made(setup)  # attention computes in 16 bits whatever it is given
    adapters = len(hit) * setup.rank * (compute if setup.autocast else BYTES[setup.trained])
    if setup.use_dora:  # the gradient of the magnitude needs what the layer and the adapter made
        adapters += sum(shape.linear(role)[1] for role in hit) * (given + computed)
    inputs = 1 if setup.fused_qkv and roles[0] == "q" else len(hit)
    if setup.dropout:  # for each its own: what is left, and the mask
        return adapters + inputs * width * (computed + setup.mask_bytes)
    # PEFT gives adapters their input in their own type, or autocast in 16 bits: a copy for each.
    if given > compute or (BYTES[setup.trained] > compute and not setup.shares_inputs):
        return adapters + inputs * width * computed
    return adapters + (0.0 if already else width * compute)


def gradients_of_block(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes a token while a block is differentiated: gradients of the MLP's middle, and of the residual."""
    middle = shape.intermediate_size * (3 if shape.gated_mlp else 2) * max(1, shape.experts_per_token)
    return middle * made(setup) + 2 * shape.hidden_size * stream(setup)


def mask(setup: TrainingSetup) -> float:
    """Of one block, in the type of the queries."""
    return setup.micro_batch * setup.length**2 * BYTES[setup.compute] if setup.masked else 0.0


def norms_of_dora(shape: ModelShape, setup: TrainingSetup) -> float:
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
        side, size = shape.linear(role)[0] ** 2, shape.size(role)
        found = max(found, side * unit, side * computed + size * (3 * BYTES[setup.trained] + own))
    return found
