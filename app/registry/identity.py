"""What a base model is, by hashes, and which folders can be one. No torch: the API asks the cheap half too."""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from app.jobs.prepared import BaseIdentity

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by the format's own limit."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
)


class UnusableBase(Exception):
    """The folder cannot be a base model; the message says what to do."""

    code: ClassVar[Literal["model_not_usable", "unsafe_weights"]] = "model_not_usable"


class UnsafeWeights(UnusableBase):
    """Its weights, or its code, would run when they are loaded."""

    code = "unsafe_weights"


def is_usable(folder: Path) -> bool:
    """Whether jobs may start from a folder; cheap."""
    try:
        require_safe(folder)
    except UnusableBase:
        return False
    return True


def require_safe(folder: Path, *, links_may_leave: bool = False) -> None:
    """Refuse what is not a model, or would run code. Cheap: no weights are read. Raises `UnusableBase`.

    `links_may_leave` is for snapshots of the hub's cache, whose files are links into its `blobs`.
    """
    config = read_config(folder)
    if "auto_map" in config:
        raise UnsafeWeights(
            "its config.json asks for code of its own (auto_map), which is never run here. Use a model whose"
            " architecture transformers has built in."
        )
    if (folder / "adapter_config.json").exists():
        raise UnusableBase(
            "there is an adapter in its folder (adapter_config.json), which would be loaded with it. Merge it into the"
            " model, or move the adapter's files out."
        )
    _require_whole(folder)
    if not list(folder.glob("*.safetensors")):
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise UnsafeWeights(
                "its weights are pickles, which run code when they are loaded. Convert them where you trust them:"
                " AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors."
            )
        raise UnusableBase("it has no *.safetensors. Copy the weights into the folder.")
    if not links_may_leave:
        _require_inside(folder)


def of_folder(folder: Path, *, id: str, revision: str | None = None) -> BaseIdentity:  # noqa: A002  the field's name
    """Hash a base: all of its weights are read.

    Each digest is the SHA-256 over lines `name size sha256`, sorted, of the files it covers; the tokenizer's covers
    its files and `tokenizer_config.json` without the chat template, which has a digest of its own. `revision` is a
    commit of the hub; without one it is `sha256:` and the digest over all of these and `config.json`.
    """
    weights = _digest({path.name: path for path in folder.glob("*.safetensors")})
    tokenizer, template_sha256 = of_tokenizer(folder)
    if revision is None:
        config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
        whole = "\n".join((weights, tokenizer, template_sha256 or "", config))
        revision = "sha256:" + hashlib.sha256(whole.encode()).hexdigest()
    return BaseIdentity(
        id=id,
        revision=revision,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
        chat_template_sha256=template_sha256,
    )


def of_tokenizer(folder: Path) -> tuple[str, str | None]:
    """The two digests of an identity that decide over tokens: the tokenizer's, and the chat template's."""
    template = chat_template(folder)
    return _tokenizer_digest(folder), hashlib.sha256(template.encode()).hexdigest() if template is not None else None


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`. Raises `UnusableBase` where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnusableBase("it has no config.json. Copy the whole model folder, not the weights alone.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UnusableBase(f"its config.json cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise UnusableBase("its config.json is not a JSON object.")
    return config


def tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a base's weights, by the headers of its safetensors; none where there is no file.

    Raises `UnusableBase` for a header that cannot be read.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, LARGEST_HEADER)))
            found |= {name: tuple(one["shape"]) for name, one in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnusableBase(f"its {path.name} is no safetensors file: {error}.") from error
    return found


def chat_template(folder: Path) -> str | None:
    """The template that transformers will use: `chat_template.jinja`, else the one in `tokenizer_config.json`."""
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    named = {file.stem: file.read_text(encoding="utf-8") for file in files if file.exists()}
    if named:  # of several, what is hashed is all
        return named["chat_template"] if named.keys() == {"chat_template"} else _canonical(named)
    inside = _tokenizer_config(folder).get("chat_template")
    # Older models name several, in a list: what is hashed is the list.
    return inside if inside is None or isinstance(inside, str) else _canonical(inside)


def _tokenizer_digest(folder: Path) -> str:
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).exists()}
    settings = {name: value for name, value in _tokenizer_config(folder).items() if name != "chat_template"}
    canonical = _canonical(settings).encode()
    extra = f"tokenizer_config.json {len(canonical)} {hashlib.sha256(canonical).hexdigest()}\n"
    return _digest(files, extra)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(files: dict[str, Path], *extra: str) -> str:
    lines = [f"{name} {path.stat().st_size} {_sha256(path)}\n" for name, path in files.items()]
    return hashlib.sha256("".join(sorted([*lines, *extra])).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_whole(folder: Path) -> None:
    """Shards are loaded by the names in their index: each must be a file of the folder, which is what is hashed."""
    index = folder / "model.safetensors.index.json"
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(shards))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableBase(f"its {index.name} cannot be read: {error!r}.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeWeights(f"its {index.name} names {name!r}, which is no safetensors file of the folder.")
        if not (folder / name).is_file():
            raise UnusableBase(f"its weights are incomplete: '{name}' is missing. Copy it into the folder.")


def _require_inside(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UnsafeWeights(f"'{path.name}' is a link that leads out of the folder. Copy the file instead.")
