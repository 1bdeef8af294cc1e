"""What a base is, by hashes: each changes when its part does, and only then. And which folders are no base."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from app.jobs.prepared import BaseIdentity
from app.registry import identity
from app.registry.identity import UnsafeWeights, UnusableBase
from tests import tiny

WEIGHTS, TOKENIZER, TEMPLATE, REVISION = "weights_sha256", "tokenizer_sha256", "chat_template_sha256", "revision"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A base of one's own to change."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def of(folder: Path, revision: str | None = None) -> BaseIdentity:
    return identity.of_folder(folder, id="tiny", revision=revision)


def changed(base: Path, change: Callable[[Path], object]) -> set[str]:
    """The fields that differ once a folder was changed."""
    before = of(base)
    change(base)
    after = of(base)
    return {name for name in BaseIdentity.model_fields if getattr(before, name) != getattr(after, name)}


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def make_old(base: Path) -> None:
    for path in base.iterdir():
        os.utime(path, (1, 1))


def move_one_weight(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (move_one_weight, {WEIGHTS}),
        (lambda base: (base / "more.safetensors").write_bytes(b""), {WEIGHTS}),
        (lambda base: (base / "model.safetensors").rename(base / "renamed.safetensors"), {WEIGHTS}),
        (lambda base: edit_json(base / "tokenizer.json", truncation=None, padding=None, added=1), {TOKENIZER}),
        (lambda base: edit_json(base / "tokenizer_config.json", model_max_length=99), {TOKENIZER}),
        (lambda base: (base / "special_tokens_map.json").write_text('{"eos_token": "x"}'), {TOKENIZER}),
        (lambda base: (base / "chat_template.jinja").write_text(tiny.CHATML + " "), {TEMPLATE}),
        (lambda base: (base / "chat_template.jinja").unlink(), {TEMPLATE}),
        (lambda base: edit_json(base / "config.json", rope_theta=1.0), set()),
    ],
    ids=["weight", "more", "renamed", "tokenizer", "setting", "special-tokens", "template", "no-template", "config"],
)
def test_a_digest_changes_with_its_part_and_the_revision_with_each(
    base: Path, change: Callable[[Path], object], fields: set[str]
) -> None:
    assert changed(base, change) == {*fields, REVISION}


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"])
def test_every_file_of_a_tokenizer_counts(base: Path, name: str) -> None:
    (base / name).write_bytes(b"1")
    assert changed(base, lambda base: (base / name).write_bytes(b"2")) == {TOKENIZER, REVISION}


def test_digests_can_be_checked_without_this_service(base: Path) -> None:
    """Those that are stored with results have to mean the same in every version."""

    def line(name: str, content: bytes) -> str:
        return f"{name} {len(content)} {hashlib.sha256(content).hexdigest()}\n"

    settings = json.loads((base / "tokenizer_config.json").read_text())
    written = json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()
    tokenizer = line("tokenizer.json", (base / "tokenizer.json").read_bytes()) + line("tokenizer_config.json", written)
    parts = [
        hashlib.sha256(line("model.safetensors", (base / "model.safetensors").read_bytes()).encode()).hexdigest(),
        hashlib.sha256(tokenizer.encode()).hexdigest(),
        hashlib.sha256(tiny.CHATML.encode()).hexdigest(),
    ]
    whole = "\n".join([*parts, hashlib.sha256((base / "config.json").read_bytes()).hexdigest()])

    found = of(base)

    assert [found.weights_sha256, found.tokenizer_sha256, found.chat_template_sha256] == parts
    assert found.revision == "sha256:" + hashlib.sha256(whole.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda base: (base / "README.md").write_text("A model."),
        lambda base: (base / "onnx").mkdir(),
        make_old,
        lambda base: edit_json(base / "tokenizer_config.json"),
        lambda base: (base / "chat_template.jinja").write_bytes(tiny.CHATML.encode()),
    ],
    ids=["readme", "folder", "times", "settings-written-otherwise", "template-written-again"],
)
def test_what_is_no_part_of_a_base_changes_nothing(base: Path, change: Callable[[Path], object]) -> None:
    assert changed(base, change) == set()


def test_two_copies_are_one_base_and_another_seed_is_another(made: Path, base: Path, tmp_path: Path) -> None:
    assert of(made) == of(base)
    other = of(tiny.make_base(tmp_path / "other", seed=1))
    assert other.weights_sha256 != of(base).weights_sha256
    assert other.tokenizer_sha256 == of(base).tokenizer_sha256


def test_a_template_has_the_same_digest_wherever_it_lies(base: Path) -> None:
    def into_the_config(base: Path) -> None:
        template = (base / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").unlink()
        edit_json(base / "tokenizer_config.json", chat_template=template)

    assert changed(base, into_the_config) == set()
    assert changed(base, lambda base: edit_json(base / "tokenizer_config.json", chat_template="x")) == {
        TEMPLATE,
        REVISION,
    }


def test_the_template_that_counts_is_the_one_that_is_used(base: Path) -> None:
    edit_json(base / "tokenizer_config.json", chat_template="{{ 'the older' }}")

    assert identity.chat_template(base) == AutoTokenizer.from_pretrained(base).chat_template == tiny.CHATML


def test_a_template_for_tools_counts_too(base: Path) -> None:
    def change(base: Path) -> None:
        (base / "additional_chat_templates").mkdir(exist_ok=True)
        (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'with tools' }}")

    assert changed(base, change) == {TEMPLATE, REVISION}
    assert AutoTokenizer.from_pretrained(base).chat_template == {
        "default": tiny.CHATML,
        "tool_use": "{{ 'with tools' }}",
    }
    older = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    shutil.rmtree(base / "additional_chat_templates")
    (base / "chat_template.jinja").unlink()
    assert changed(base, lambda base: edit_json(base / "tokenizer_config.json", chat_template=older)) == {
        TEMPLATE,
        REVISION,
    }


def test_the_revision_is_of_the_content_or_the_hubs_commit(base: Path) -> None:
    digest = of(base).revision.removeprefix("sha256:")
    assert len(digest) == 64
    assert int(digest, 16)

    at_commit = of(base, revision="c" * 40)
    assert at_commit == of(base).model_copy(update={"revision": "c" * 40})


def test_a_base_without_a_template_says_so(base: Path) -> None:
    (base / "chat_template.jinja").unlink()

    assert of(base).chat_template_sha256 is None


def test_a_whole_folder_of_safetensors_is_usable(base: Path) -> None:
    identity.require_safe(base)
    assert identity.is_usable(base)
    (base / "pytorch_model.bin").write_bytes(b"never loaded")  # safetensors beside it are what is loaded
    identity.require_safe(base)


def refuse(folder: Path, kind: type[UnusableBase], says: str) -> None:
    with pytest.raises(UnusableBase, match=says) as refused:
        identity.require_safe(folder)
    assert type(refused.value) is kind
    assert not identity.is_usable(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_with_the_way_out(base: Path, name: str) -> None:
    (base / "model.safetensors").rename(base / name)

    refuse(base, UnsafeWeights, "weights are pickles.*save_pretrained.*safetensors")


def test_code_of_its_own_is_refused(base: Path) -> None:
    edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})

    refuse(base, UnsafeWeights, "auto_map")


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "pytorch_model.bin", "..", "", 3, None],
)
def test_an_index_that_names_what_is_no_safetensors_of_the_folder_is_refused(base: Path, name: Any) -> None:
    torch.save({}, base / "pytorch_model.bin")
    (base.parent / "other.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    write_index(base, {"model.norm.weight": name})

    refuse(base, UnsafeWeights, "names .* which is no safetensors file of the folder")


def test_a_missing_shard_is_refused_by_name(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    write_index(base, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    refuse(base, UnusableBase, "incomplete: 'model-00002-of-00002.safetensors' is missing")

    (base / "model-00002-of-00002.safetensors").write_bytes(b"")
    identity.require_safe(base)


def write_index(base: Path, weight_map: object) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "[" * 100_000])
def test_an_index_that_cannot_be_read_is_refused(base: Path, index: str) -> None:
    (base / "model.safetensors.index.json").write_text(index)

    refuse(base, UnusableBase, "model.safetensors.index.json cannot be read")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "additional_chat_templates"])
def test_a_link_out_of_the_folder_is_refused_but_of_the_hubs_cache(base: Path, tmp_path: Path, name: str) -> None:
    if (base / name).exists():
        (base / name).rename(tmp_path / name)
    (base / name).symlink_to(tmp_path / name)

    refuse(base, UnsafeWeights, f"'{name}' is a link that leads out of the folder. Copy the file instead.")
    identity.require_safe(base, links_may_leave=True)


def test_a_link_within_the_folder_is_fine(base: Path) -> None:
    (base / "model.safetensors").rename(base / "weights")
    (base / "model.safetensors").symlink_to("weights")

    identity.require_safe(base)


def test_a_link_to_a_whole_folder_is_that_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(base)

    identity.require_safe(tmp_path / "alias")
    assert of(tmp_path / "alias") == of(base)


def test_an_adapter_in_a_bases_folder_is_refused(base: Path) -> None:
    """transformers would load it with the base, and no digest would tell."""
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))

    refuse(base, UnusableBase, "there is an adapter in its folder .*Merge it")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "it has no config.json"),
        ("", "its config.json cannot be read"),
        ("[]", "its config.json is not a JSON object"),
        ("[" * 100_000, "its config.json cannot be read"),
        ("\udcff", "its config.json cannot be read"),
    ],
)
def test_a_folder_without_a_config_is_no_base(base: Path, config: str | None, says: str) -> None:
    (base / "config.json").unlink()
    if config is not None:
        (base / "config.json").write_bytes(config.encode(errors="surrogateescape"))

    refuse(base, UnusableBase, says)


def test_a_folder_without_weights_is_no_base(base: Path) -> None:
    (base / "model.safetensors").unlink()

    refuse(base, UnusableBase, "it has no .*safetensors. Copy the weights")
