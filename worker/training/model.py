"""The base model as it is trained: checked against its identity, in 4 bits or not, with an adapter or without."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from app.jobs.prepared import BaseIdentity
from app.jobs.spec import JobSpec, LoraTuning, QloraTuning, resolved
from worker.training import configs
from worker.training.base import locate_again, require_same
from worker.training.device import Device
from worker.training.failures import PackingNotSupported, SpecUnusable, TargetModulesUnusable

PROBE_TOKENS = 16
"""Of each of the two rows that show whether a model keeps the rows of a pack apart."""


def require_same_base(expected: BaseIdentity, work_dir: Path) -> Path:
    """The folder of the base that the files were prepared for. Raises `BaseChanged` for any other."""
    base = locate_again(expected, work_dir)
    suggestion = "Submit the job again to train on it as it is now: this one was prepared for what it was."
    require_same(base, expected, suggestion=suggestion)
    return base.path


def load(folder: Path, spec: JobSpec, device: Device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model on its device, and its tokenizer; safetensors only, no code of the folder's own.

    PEFT's `prepare_model_for_kbit_training` is left out: freezing and gradients for checkpointing are TRL's doing
    already, and the rest of it holds embeddings and output layer in fp32, 2 GB more for Llama-3-8B.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    options: dict[str, Any] = {}
    if isinstance(spec.tuning, QloraTuning):
        options["quantization_config"] = configs.quantization_config(device)
    kind = AutoModelForCausalLM
    if spec.method.type == "reward":
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
        set_seed(resolved(spec.seed))  # the layer that gives the number is new
    model = kind.from_pretrained(
        folder,
        dtype=configs.base_dtype(spec, device),
        attn_implementation=attention(device),
        device_map={"": 0} if device.kind == "cuda" else None,
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    )
    keep_4bit_weights_as_they_are(model)
    return model, tokenizer


def attention(device: Device) -> str | None:
    """What transformers shall compute attention by; None, where that is SDPA, for families that cannot have it.

    Asked for by name it is refused for those (Gemma 2, gpt-oss); by itself transformers takes it wherever it can.
    """
    return None if device.attention == "sdpa" else device.attention


def require_target_modules(model: PreTrainedModel, wanted: str | list[str]) -> None:
    """Refuse names that match no linear layer of the base: PEFT lets a misspelt one pass beside one that matches.

    Names match as PEFT's do, whole or as the end of a path. The output layer is no target: TRL computes the loss from
    its weights directly and would never train an adapter there. Raises `TargetModulesUnusable`.
    """
    if isinstance(wanted, str):  # `all-linear`, which PEFT expands
        return
    head = model.get_output_embeddings() or getattr(model, "score", None)
    linear = [
        name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear | Conv1D) and part is not head
    ]
    unknown = [one for one in wanted if not any(name == one or name.endswith(f".{one}") for name in linear)]
    if unknown:
        missing, known = ", ".join(unknown), ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise TargetModulesUnusable(
            f"The base model has no linear layers named {missing} for an adapter to go on. It has: {known}."
        )


def modules_to_save(model: PreTrainedModel, tuning: LoraTuning) -> tuple[list[str], bool]:
    """Names by which PEFT finds the modules to train whole, and no others; whether embeddings among them are tied.

    Names match whole or as the end of a path; PEFT would take `norm` for `input_layernorm` too. Raises `SpecUnusable`
    for those the base does not have, and for weights that would not be trained, or not be what they are called.
    """
    param = "tuning.modules_to_save"
    holders = {name: part for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))}
    names: list[str] = []
    for wanted in tuning.modules_to_save:
        found = [name for name in holders if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in holders}))
            raise SpecUnusable(param, f"The base model has no modules with weights named {wanted}. It has: {known}.")
        if any(isinstance(holders[name], Linear4bit) for name in found):
            message = f"{wanted} is in 4 bits, which cannot be trained. Leave it out, or send tuning.type 'lora'."
            raise SpecUnusable(param, message)
        everywhere = [name for name, _ in model.named_modules() if name.endswith(wanted)]
        names.extend([wanted] if everywhere == found else found)
    whole = [part for name, part in holders.items() if any(name.endswith(one) for one in names)]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return names, False
    if head in whole and embeddings not in whole:
        own = next(name for name, part in holders.items() if part is embeddings).rsplit(".", 1)[-1]
        message = f"Of this base the output layer is the embeddings. Name {own}, which trains both as one."
        raise SpecUnusable(param, message)
    return names, embeddings in whole


def require_rows_kept_apart(trainer: Trainer) -> None:
    """Refuse a model for packs that lets a row see the one before it. Raises `PackingNotSupported`.

    Which does is for each family's own code in transformers to say, so it is tried, in milliseconds: a row is computed
    alone, behind another row in a pack, and as what that other row goes on with. In a pack it must be what it is alone,
    but for a fiftieth of what seeing the other row changes. Of that, bf16 rounded away at most 0.0044 (30 layers) in
    families that keep rows apart; of those that mix them RecurrentGemma came to 0.095 and OPT to half or more.
    """
    refusal = "with this base model the rows of a pack would see each other."
    model = trainer.model
    drawn = torch.Generator().manual_seed(0)
    known = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(known, (2 * PROBE_TOKENS,), generator=drawn).tolist()

    def second_row(ids: list[int], lengths: list[int]) -> torch.Tensor:
        batch = trainer.data_collator([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
        given = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        logits: torch.Tensor = model(**given, use_cache=False).logits
        return logits[0, -PROBE_TOKENS:].float()

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            alone = second_row(tokens[PROBE_TOKENS:], [PROBE_TOKENS])
            packed = second_row(tokens, [PROBE_TOKENS, PROBE_TOKENS])
            going_on = second_row(tokens, [2 * PROBE_TOKENS])
    except (TypeError, ValueError) as error:  # of families whose code knows no packs, or not without more packages
        raise PackingNotSupported(f"{refusal} {str(error)[:500]}") from error
    finally:
        model.train(was_training)
    if (packed - alone).abs().mean() > 0.02 * (going_on - alone).abs().mean():
        raise PackingNotSupported(refusal)


def keep_4bit_weights_as_they_are(model: torch.nn.Module) -> None:
    """Keep bitsandbytes (0.50) from repacking 4-bit weights at the first forward without gradients.

    It does so on CPUs with AVX512-BF16, and every gradient after that is wrong (norm 0.41 instead of 2.1).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def keep_adapter_in_fp32(model: torch.nn.Module) -> None:
    """TRL casts a QLoRA adapter to bf16, and PEFT copies modules to train whole as the base has them: small updates
    are rounded away there, so the recipe keeps what is trained in fp32.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def go_on_from(adapter: PeftModel, folder: Path) -> None:
    """Give a new adapter the weights of one that was trained. Its shape is the same: the spec has taken it over.

    Done once the trainer is built, because TRL rounds the adapter it is given to bf16 where the base is in 4 bits.
    Raises `ValueError` for weights of another shape.
    """
    loaded = set_peft_model_state_dict(adapter, load_peft_weights(str(folder), device="cpu"))
    absent = [name for name in loaded.missing_keys if ".default." in name]  # neither the base's nor a reference's
    if absent or loaded.unexpected_keys:
        raise ValueError(f"the adapter does not fit: {[*absent, *loaded.unexpected_keys][:5]}")


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Trained parameters and all of them; a 4-bit weight counts as the parameters it holds, not as its bytes."""
    trained = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        quantized = getattr(parameter, "quant_state", None)
        if quantized is not None:
            count = quantized.shape.numel()
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total
