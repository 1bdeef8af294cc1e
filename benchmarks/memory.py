"""Published peaks of GPU memory against the formula: `python -m benchmarks.memory FILE.csv`; without a file, the table
of the study that this project began with beside what our trainer would take.

Each row of the file is a run whose conditions are known, columns as in `vram-calibration.csv`. Prints a row's published
peak, the formula's, and for a row that was trained with transformers and PEFT the dry run's, with their ratios; then
quantiles of the error, for the rows that are complete (`core`), for all, and for those with a dry run. What is read is
what a column says of the run, never which number would fit.

Where a length is a cap that no batch need reach, the estimates are of the cap. Of complete rows on the same data the
longest batch is one number, which nobody published. So each is also held against the dry run at the length that the
*other* rows would have: what is then left is the dry run's own error. `peft_comparison.csv` has five.
"""

import csv
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.fitting import peak
from app.planning.hardware import GIB
from app.planning.memory import estimate
from app.planning.recipes import Facts
from app.planning.setups import STATES, Device, setup_of
from app.planning.step import FULL_LOSS, ModelShape, Role, TrainingSetup, Weights, trained_params
from benchmarks import memory_dry_run

Row = Mapping[str, str]

CHUNKED_LOSS = 8.0
"""Bytes a logit where the loss goes by chunks and the graph keeps all of them: fp32 logits and log-probabilities."""
CHUNKED_COMPILED_LOSS = 3.0
"""Where those are computed again: 16-bit logits, whose place their gradients take, and one chunk of eight in fp32."""


def shape_of_row(row: Row) -> ModelShape:
    """The model of a row."""
    number = {name: int(float(row[name])) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "vocab")}
    gated = row["mlp"] != "plain"
    return ModelShape(
        hidden_size=number["hidden"],
        num_layers=number["layers"],
        num_heads=number["heads"],
        num_kv_heads=number["kv_heads"],
        head_dim=number["head_dim"],
        intermediate_size=int(float(row["intermediate"])),
        vocab_size=number["vocab"],
        tied_embeddings=_yes(row["tied_embeddings"]),
        gated_mlp=gated,
        norm="rms" if gated else "layer",
        total_params=int(float(row["total_params"])) if row["total_params"] else None,
    )


def setup_of_row(row: Row, shape: ModelShape) -> TrainingSetup:
    """How a row was trained."""
    method, precision = row["method"].lower(), row["compute_precision"].lower()
    framework = row["framework"].lower()
    litgpt, torchtune = re.search("lit-?gpt", framework) is not None, "torchtune" in framework
    full = method.startswith("full")
    weights = _weights(row["base_weight_format"].lower())
    autocast = "mixed" in precision or (
        "autocast" in precision and not re.search("no autocast|autocast off", precision)
    )
    trained: Literal["fp32", "bf16"] = "fp32" if "fp32" in row["trainable_dtype"] else "bf16"
    compiled = _yes(row["torch_compile"])
    optimizer = row["optimizer"].lower()
    states = _state_bytes(row["optimizer_state"].lower(), optimizer, trained)
    setup = TrainingSetup(
        tuning="full" if full else "qlora" if weights in ("nf4", "nf4_double", "int8") else "lora",
        micro_batch=int(float(row["micro_batch"])),
        length=int(float(row["seq_len"])),
        weights=weights,
        head_quantized=litgpt,
        compute="fp32" if precision.startswith(("fp32", "32")) else "bf16",
        autocast=autocast,
        trained=trained,
        state_bytes=states,
        step_bytes=states / 2 if optimizer.startswith("torch adam") and "fused" not in optimizer else 0.0,
        states_in_host_memory="paged" in optimizer or "paged" in row["optimizer_state"] or _yes(row["cpu_offload"]),
        optimizer_in_backward=_yes(row["optimizer_in_backward"]),
        accumulates=_accumulates(row["grad_accum"]),
        rank=int(float(row["lora_rank"])) if row["lora_rank"] else 0,
        targets=frozenset() if full else _targets(row["lora_targets"].lower(), shape),
        dropout=litgpt,  # 0.05 in its scripts; the others' default is none
        use_dora="dora" in method,
        trains_embeddings="modules_to_save" in method,
        trains_head="modules_to_save" in method,
        checkpointing=row["activation_checkpointing"].lower().startswith("full"),
        offloads_activations=_yes(row["activation_offload"]),
        attention="eager" if _is_eager(row) else "flash",
        repeats_kv=(litgpt or torchtune) and shape.num_kv_heads not in (1, shape.num_heads),
        fused_qkv=litgpt or _is_fused(row),
        compiled=compiled,
        unties_embeddings=litgpt,
        head_calls=_head_calls(row),
        quantized_inputs_kept=weights.startswith("nf4") and _old_bitsandbytes(row),
        buckets="ddp" in row["parallelism"].lower(),
        shards=_shards(row),
        reserved=re.search("reserved|nvidia-smi", row["peak_metric"].lower()) is not None,
        context="nvidia-smi" in row["peak_metric"].lower(),
    )
    loss = row["loss_impl"].lower()
    if "chunk" in loss:
        return replace(setup, loss_bytes=CHUNKED_COMPILED_LOSS if compiled else CHUNKED_LOSS)
    return replace(setup, loss_bytes=FULL_LOSS, kept_logit_bytes=_kept_logit_bytes(row))


def _kept_logit_bytes(row: Row) -> float:
    """transformers made logits fp32 before it returned them, up to 4.44; torchtune did until it frees them, 2024-07."""
    version = row["framework_version"].lower()
    if "torchtune" in row["framework"].lower():
        return 4.0 if re.match(r"2024-0[1-6]", version) else 0.0
    newer = re.search(r"transformers (\d+)\.(\d+)", version)
    return 2.0 if newer and (int(newer[1]), int(newer[2])) >= (4, 45) else 4.0


def _head_calls(row: Row) -> int:
    """litgpt's output layer takes so many tokens at a time."""
    said = re.search(r"lm_head chunk (\d+)", row["loss_impl"])
    return math.ceil(float(row["seq_len"]) / int(said[1])) if said else 1


def _old_bitsandbytes(row: Row) -> bool:
    said = re.search(r"(?:bitsandbytes|bnb) 0\.(\d+)", row["framework_version"].lower())
    return said is not None and int(said[1]) < 43


def _is_eager(row: Row) -> bool:
    """A row may say what holds for some models of its source alone."""
    said = row["attention_impl"].lower()
    return "gemma-2" in row["model"].lower() if "soft-capped" in said else "eager" in said


def _is_fused(row: Row) -> bool:
    """Whether the model's own code makes queries, keys and values in one layer."""
    return re.search("qwen-|chatglm|baichuan|falcon|pythia|phi-3", row["model"].lower()) is not None


def _yes(value: str) -> bool:
    return value.strip() in ("1", "1.0", "true", "True", "yes")


def _weights(said: str) -> Weights:
    if "nf4" in said or "fp4" in said or "4bit" in said or "4-bit" in said:
        return "nf4_double" if re.search("double|dq", said) else "nf4"
    if "int8" in said or "8bit" in said:
        return "int8"
    return "fp32" if said.startswith("fp32") else "fp16" if said.startswith("fp16") else "bf16"


def _state_bytes(said: str, optimizer: str, trained: str) -> float:
    if "8bit" in optimizer or "8-bit" in optimizer or "8bit" in said or "int8" in said:
        return STATES["adamw_bnb_8bit"][0]
    if "sgd" in optimizer:
        return 0.0
    if "bf16" in said:
        return 4.0
    if "fp32" in said:
        return 8.0
    return 4.0 if trained == "bf16" else 8.0


def _accumulates(said: str) -> bool:
    number = re.fullmatch(r"\d+(\.0)?", said.strip())
    return bool(said) and not (number and float(said) <= 1)


def _targets(said: str, shape: ModelShape) -> frozenset[Role]:
    if "all" in said.split("(")[0]:
        return frozenset(("q", "k", "v", "o", *shape.mlp))
    found: set[Role] = set()
    for word in re.split(r"[+,\s()]+", said):
        if word in ("q", "k", "v", "o", "gate", "up", "down"):
            found.add(word)  # type: ignore[arg-type]  # those are roles
        elif word in ("c_attn", "query_key_value", "w_pack", "qkv"):
            found |= {"q", "k", "v"}
        elif word == "mlp":
            found |= set(shape.mlp)
        elif word in ("lm_head", "head"):
            found.add("head")
    return frozenset(found)


def _shards(row: Row) -> int:
    spread = re.search("fsdp|zero-?3|zero3", row["parallelism"].lower())
    return int(float(row["n_gpus"] or 1)) if spread else 1


STUDIED = ModelShape(4096, 32, 32, 8, 128, 14336, 128256)
"""Llama-3-8B: the study calls it 7B, and counts 8.0 billion trained parameters."""
STUDY: tuple[tuple[str, dict[str, object], float], ...] = (
    ("full", {"type": "full"}, 80),
    ("LoRA r=16", {"type": "lora", "r": 16}, 16),
    ("QLoRA r=16", {"type": "qlora", "r": 16}, 10),
    ("QLoRA r=64", {"type": "qlora", "r": 64}, 12),
)
"""Its claims, in GB."""


def print_study() -> None:
    """Each claim, and the recipe's training of rows of 1,024 tokens on one GPU."""
    facts = Facts(longest_row=1024, hidden_size=4096, model_type="llama", context_length=8192, device="cuda")
    print(f"{'tuning':11} {'claimed':>8} {'ours':>9} {'trained':>15}  of it")
    for name, tuning, claimed in STUDY:
        spec = JobSpec.model_validate({"model": "m", "training_file": "f", "tuning": tuning})
        found = peak(spec, facts, STUDIED, Device("cuda", "bf16"))
        setup = setup_of(recipes.resolve(spec, facts), STUDIED, Device("cuda", "bf16"))
        held = found.weights + found.quantization
        moving = found.adapter + found.gradients + found.optimizer
        print(
            f"{name:11} {claimed:5.0f} GB {found.total / 1e9:6.1f} GB {trained_params(STUDIED, setup):15,}"
            f"  base {held / 1e9:.1f}, what moves {moving / 1e9:.1f},"
            f" a step {(found.activations + found.loss + found.temporary) / 1e9:.1f},"
            f" slack and context {(found.slack + found.context) / 1e9:.1f}"
        )


def main(paths: Sequence[str]) -> None:
    """Print the tables."""
    if not paths:
        print_study()
    for path in paths:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        print(
            f"{'id':6} {'use':6} {'model':24} {'method':12} {'published':>9} {'formula':>8} {'ratio':>6}"
            f" {'dry run':>8} {'ratio':>6}"
        )
        compared = [_compare(row) for row in rows]
        for use in ("core", None):
            those = [one for one in compared if use in (one.use, None)]
            _print_errors(f"{use or 'all'}, formula", [one.formula for one in those])
        for framework in (None, *sorted({one.framework for one in compared if one.dry_run})):
            tried = [one for one in compared if one.dry_run and framework in (one.framework, None)]
            name = framework or "all with a dry run"
            _print_errors(f"{name}, formula", [one.formula for one in tried])
            _print_errors(f"{name}, dry run", [one.dry_run for one in tried if one.dry_run])
        _print_common_lengths(rows, compared)


def _print_common_lengths(rows: Sequence[Row], compared: Sequence["Compared"]) -> None:
    """Of complete rows with a cap and a dry run, by what they share: framework, model, rows a batch and cap."""
    groups: dict[tuple[str, ...], list[_Capped]] = {}
    for row, one in zip(rows, compared, strict=True):
        if one.use == "core" and one.dry_run is not None and "cap" in row["seq_len_kind"]:
            key = tuple(row[name] for name in ("framework", "model", "micro_batch", "seq_len"))
            groups.setdefault(key, []).append(_Capped.of(row, one.dry_run))
    for (framework, model, _, cap), those in groups.items():
        if len(those) == 1:
            continue
        print(f"{framework}, {model}: the longest batch is at most {cap} tokens, and the same one in {len(those)} rows")
        ratios = []
        for capped in those:
            length = statistics.median(other.exact_at for other in those if other is not capped)
            ratios.append(capped.ratio_at(length))
            print(
                f"{capped.id:6} exact at {capped.exact_at:4.0f} tokens;"
                f" at {length:4.0f}, as the others have it: {ratios[-1] * capped.published:8.2f} {ratios[-1]:6.3f}"
            )
        _print_errors("at the others' length, dry run", ratios)


@dataclass(frozen=True, slots=True)
class _Capped:
    """A row by the length of its longest batch: near the cap what its dry run takes is a line."""

    id: str
    published: float
    """GiB."""
    cap: int
    at_cap: float
    slope: float
    """Of the dry run's ratio to what was published, with each token."""

    @classmethod
    def of(cls, row: Row, at_cap: float) -> "_Capped":
        """`at_cap`: the ratio there."""
        cap = int(float(row["seq_len"]))
        shortened = {**row, "seq_len": str(cap * 7 // 8)}
        shape = shape_of_row(shortened)
        published = float(row["peak_gib_per_gpu"])
        shorter = memory_dry_run.of_row(shortened, shape, setup_of_row(shortened, shape)).total / GIB / published
        return cls(row["id"], published, cap, at_cap, (at_cap - shorter) / (cap - cap * 7 // 8))

    def ratio_at(self, length: float) -> float:
        return self.at_cap - self.slope * (self.cap - length)

    @property
    def exact_at(self) -> float:
        """The length at which it takes what was published."""
        return self.cap - (self.at_cap - 1) / self.slope


@dataclass(frozen=True, slots=True)
class Compared:
    """A row's estimates, as ratios to what was published."""

    use: str
    framework: str
    formula: float
    dry_run: float | None
    """None where the row was trained with other libraries, or no dry run can be made of it."""


def _compare(row: Row) -> Compared:
    """Both estimates of a row, printed."""
    shape = shape_of_row(row)
    setup = setup_of_row(row, shape)
    formula = estimate(shape, setup).total / GIB
    published = float(row["peak_gib_per_gpu"])
    print(
        f"{row['id']:6} {row['use_for_scoring']:6} {row['model'][:24]:24} {row['method'][:12]:12}"
        f" {published:9.2f} {formula:8.2f} {formula / published:6.3f}",
        end="",
    )
    tried = None
    if memory_dry_run.is_covered(row, setup):
        try:
            tried = memory_dry_run.of_row(row, shape, setup).total / GIB / published
            print(f" {tried * published:8.2f} {tried:6.3f}", end="")
        except Exception as error:  # noqa: BLE001  a row that cannot be run shall not hide the others
            print(f" {type(error).__name__}: {str(error)[:60]}", end="")
    print(flush=True)
    return Compared(row["use_for_scoring"], row["framework"], formula / published, tried)


def _print_errors(name: str, ratios: list[float]) -> None:
    if not ratios:
        return
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    under = sum(ratio < 0.9 for ratio in ratios)
    p90 = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
    print(
        f"{name}: {len(errors)} rows, error median {statistics.median(errors):.1%}, 90th percentile {p90:.1%},"
        f" largest {errors[-1]:.1%}; under by more than 10 %: {under}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
