"""PiSSA and OLoRA: adapters that begin as a part of the base's weights, which the base lacks while they train.

Their results are for the base as it is published, so what an adapter began as is kept with the checkpoints: a later
attempt takes the same part out again, and whatever is published gives it back.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, replace_lora_weights_loftq
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.jobs.spec import LoraTuning, resolved
from worker.training.failures import SpecUnusable

FILE = "initial_adapter.safetensors"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def keep_with(checkpoint: Path, folder: Path) -> None:
    """What an adapter began as goes where its checkpoint goes, to another worker too."""
    if (folder / FILE).exists():
        os.link(folder / FILE, checkpoint / FILE)


def bring_back(checkpoint: Path, folder: Path) -> None:
    """The same the other way: a worker that was here before may have begun with another part of the base."""
    if (checkpoint / FILE).exists():
        (folder / FILE).unlink(missing_ok=True)
        os.link(checkpoint / FILE, folder / FILE)


def begun(base: PreTrainedModel, config: LoraConfig, tuning: LoraTuning, file: Path) -> PeftModel:
    """The base with an adapter that has its part of it: as the file says, or found anew and written there.

    LoftQ takes nothing from it: B·A makes up for what 4 bits lose (Li et al. 2023; one round, as PEFT does for
    bitsandbytes). Raises `SpecUnusable`.
    """
    if tuning.init_lora_weights == "loftq":
        if not torch.cuda.is_available():
            raise SpecUnusable("tuning.init_lora_weights", "'loftq' is computed on a GPU, and this worker has none.")
        adapter = _adapted(base, config)
        replace_lora_weights_loftq(adapter, base.name_or_path)
        return adapter
    if file.exists():
        adapter = _adapted(base, replace(config, init_lora_weights=True))
        _take_out(adapter, load_file(file))
        return adapter
    if tuning.target_modules == "all-linear" and any(one.ndim > 2 for one in base.parameters()):
        message = "The experts of this base are no linear layers to begin in. Name others in tuning.target_modules."
        raise SpecUnusable("tuning.init_lora_weights", message)
    adapter = _adapted(base, config)
    _require_whole(adapter, tuning)
    _keep(adapter, file)
    adapter.peft_config["default"].init_lora_weights = True  # a copy of the adapter shall not take the next part
    return adapter


def _adapted(base: PreTrainedModel, config: LoraConfig) -> PeftModel:
    adapter = get_peft_model(base, config)
    assert isinstance(adapter, PeftModel)  # noqa: S101  not of mixed kinds
    return adapter


def _require_whole(adapter: PeftModel, tuning: LoraTuning) -> None:
    """Refuse what PEFT (0.21) gives another shape than the rank says."""
    rank = resolved(tuning.r)
    for name, layer in adapter.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        name = name.removeprefix("base_model.model.")
        weight = layer.get_base_layer().weight
        if tuning.init_lora_weights == "olora" and isinstance(layer.get_base_layer(), Conv1D):
            message = f"'olora' does not know layers such as {name}. Send 'pissa', or leave it out."
            raise SpecUnusable("tuning.init_lora_weights", message)
        if rank > min(weight.shape):
            message = f"{name} has only {min(weight.shape)} directions to begin with. Send at most so much."
            raise SpecUnusable("tuning.r", message)


def _keep(adapter: PeftModel, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    arriving = file.with_suffix(".arriving")
    save_file({name: one.detach().cpu().contiguous() for name, one in _matrices(adapter).items()}, arriving)
    with arriving.open("rb") as written:
        os.fsync(written.fileno())
    arriving.replace(file)


def _take_out(adapter: PeftModel, began: dict[str, torch.Tensor]) -> None:
    """W − s·B·A, to the last bit what it was, as in the order that PEFT computes it in."""
    for name, one in _matrices(adapter).items():
        one.data.copy_(began[name])
    for layer in adapter.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            part = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            part = part.detach().T if layer.fan_in_fan_out else part.detach()
            weight.data = (weight.data.float() - part).to(weight.dtype)


def _matrices(adapter: PeftModel) -> dict[str, torch.Tensor]:
    """A and B of each layer, by the names that they have in a file."""
    layers = {name: layer for name, layer in adapter.named_modules() if isinstance(layer, LoraLayer)}
    return {
        f"{name}.{which}.weight": getattr(layer, which)["default"].weight
        for name, layer in layers.items()
        for which in ("lora_A", "lora_B")
    }


def convert(folder: Path, file: Path, tuning: LoraTuning) -> None:
    """Make a saved adapter one for the untouched base: s·(BA − B₀A₀) = s·[B | −B₀]·[A ; A₀], of twice the rank.

    PEFT's own conversion of this leaves out modules that are trained whole, and scales by √2 where there is rsLoRA,
    which no whole `lora_alpha` is: B has the rest here.
    """
    published = tuning.published
    rest = _scale(tuning) / _scale(published)
    weights, began = load_file(folder / WEIGHTS), load_file(file)
    for name, initial in began.items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weights[name], initial.to(weights[name].dtype)], dim=0)
        else:
            weights[name] = torch.cat([weights[name], -initial.to(weights[name].dtype)], dim=1) * rest
    config = json.loads((folder / CONFIG).read_text())
    config |= {"r": published.r, "lora_alpha": published.lora_alpha, "init_lora_weights": True}
    for name in (WEIGHTS, CONFIG):  # which may be links to a checkpoint's
        (folder / name).unlink()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2))


def _scale(tuning: LoraTuning) -> float:
    rank = resolved(tuning.r)
    return resolved(tuning.lora_alpha) / (rank**0.5 if tuning.use_rslora else rank)
