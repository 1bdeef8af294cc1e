"""From uploaded files to what training reads: counted, cut or refused, and written whole or not at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from app.jobs.prepared import Parent, Prepared
from app.jobs.spec import JobSpec
from app.registry import identity
from tests import tiny
from worker import messages
from worker.messages import AnyMessage
from worker.training import data, failures
from worker.training.base import locate_again
from worker.training.labels import IGNORED
from worker.training.preparation import prepare

MAX_LENGTH = "method.supervised.hyperparameters.max_length"


class MakeWorkDir(Protocol):
    """Writes a WORKDIR that is still to be prepared; rows may be given as they lie in the file."""

    def __call__(
        self, rows: bytes | list[Any], *, validation: bytes | list[Any] | None = None, model: str = "tiny", **hyper: Any
    ) -> Path: ...


@pytest.fixture
def work_dir_of(tmp_path: Path) -> MakeWorkDir:
    def make(
        rows: bytes | list[Any], *, validation: bytes | list[Any] | None = None, model: str = "tiny", **hyper: Any
    ) -> Path:
        work_dir = tmp_path / f"job-{len(list(tmp_path.glob('job-*')))}"
        work_dir.mkdir()
        for name, content in (("training_file", rows), ("validation_file", validation)):
            if content is not None:
                (work_dir / name).write_bytes(content if isinstance(content, bytes) else tiny.jsonl(content))
        spec = {
            "model": model,
            "training_file": "file-train",
            "validation_file": None if validation is None else "file-validation",
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        }
        (work_dir / "job.json").write_text(JobSpec.model_validate_json(json.dumps(spec)).model_dump_json())
        return work_dir

    return make


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base called `mine`, to be spoilt."""
    monkeypatch.setenv("FINETUNED_MODELS_DIR", str(tmp_path / "models"))
    return tiny.make_base(tmp_path / "models" / "mine")


def prepared(work_dir: Path) -> Prepared:
    return prepare(work_dir, lambda _: None)


def refusal(work_dir: Path) -> messages.Failed:
    """What the job's owner is told; nothing that a worker would take for complete is left."""
    with pytest.raises(Exception) as caught:
        prepared(work_dir)
    assert not (work_dir / "prepared.json").exists()
    failed = failures.classify(caught.value, "supervised")
    assert failed.code != "internal_error"
    assert not failed.retryable
    return failed


def rows_in(file: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(file)) as source:
        return list(pa.ipc.open_stream(source).read_all().to_pylist())


def text_of(tokens: int) -> str:
    """A completion of so many tokens in the tiny base, its end included."""
    return " box" * (tokens - 1)


def test_what_is_counted_is_what_is_in_the_file(work_dir_of: MakeWorkDir) -> None:
    work_dir = work_dir_of(tiny.chat_rows(12), validation=tiny.prompt_rows(5))

    found = prepared(work_dir)

    for file, name, count in ((found.train, "train", 12), (found.validation, "validation", 5)):
        assert file is not None
        rows = rows_in(work_dir / f"{name}.arrow")
        assert (file.rows, file.truncated_rows) == (len(rows), 0) == (count, 0)
        assert file.tokens == sum(len(row["input_ids"]) for row in rows)
        assert file.trained_tokens == sum(label != IGNORED for row in rows for label in row["labels"])
        assert file.longest_row == max(len(row["input_ids"]) for row in rows)
        assert 0 < file.trained_tokens < file.tokens
        assert file.sha256 == hashlib.sha256((work_dir / f"{name}.arrow").read_bytes()).hexdigest()


def test_the_base_of_an_adapter_may_be_a_registry_model_that_lies_beside_it(
    work_dir_of: MakeWorkDir, bases: Path
) -> None:
    work_dir = work_dir_of(tiny.chat_rows(2), model="ft:tiny:default::2")
    base = identity.of_folder(bases / "tiny", id="ft:tiny:default::1")
    parent = Parent(id="ft:tiny:default::2", kind="adapter", base=base)
    (work_dir / "parent.json").write_text(parent.model_dump_json())
    (work_dir / "parent").mkdir()
    failed = refusal(work_dir)
    assert (failed.code, failed.param) == ("model_not_found", "model")
    assert "'ft:tiny:default::1' is not in the registry any more" in failed.message

    shutil.copytree(bases / "tiny", work_dir / "base")

    assert prepared(work_dir).base == base
    assert locate_again(base, work_dir).path == work_dir / "base"


def test_what_is_found_of_the_base_is_what_its_folder_says(work_dir_of: MakeWorkDir, bases: Path) -> None:
    found = prepared(work_dir_of(tiny.chat_rows(2)))

    assert found.base == identity.of_folder(bases / "tiny", id="tiny")
    assert (found.model_type, found.hidden_size, found.context_length) == ("llama", 64, 256)
    assert found.validation is None


def test_of_a_base_of_several_parts_the_language_models_numbers_count(work_dir_of: MakeWorkDir, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    text = {"hidden_size": config.pop("hidden_size"), "max_position_embeddings": config.pop("max_position_embeddings")}
    (base / "config.json").write_text(json.dumps({**config, "text_config": {**text, "model_type": "llama_text"}}))

    found = prepared(work_dir_of(tiny.chat_rows(2), model="mine"))

    assert (found.model_type, found.hidden_size, found.context_length) == ("llama_text", 64, 256)


def test_training_reads_the_rows_in_the_order_of_their_lines(work_dir_of: MakeWorkDir, bases: Path) -> None:
    rows = tiny.prompt_rows(3)
    work_dir = work_dir_of(b"\n" + tiny.jsonl(rows[:1]) + b"\n\n" + tiny.jsonl(rows[1:]))
    prepared(work_dir)
    tokenizer = AutoTokenizer.from_pretrained(bases / "tiny")

    assert [row["lines"] for row in rows_in(work_dir / "train.arrow")] == [[2], [5], [6]]
    read = data.rows_of(work_dir / "train.arrow")
    assert set(read.column_names) == {"input_ids", "labels"}
    assert [tokenizer.decode(row["input_ids"]) for row in read] == [
        row["prompt"] + row["completion"] + "<|im_end|>" for row in rows
    ]


def test_a_file_of_more_rows_than_are_held_in_memory_is_whole(work_dir_of: MakeWorkDir) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 2500
    work_dir = work_dir_of(rows)

    assert prepared(work_dir).train.rows == 2500
    assert [row["lines"] for row in rows_in(work_dir / "train.arrow")] == [[line] for line in range(1, 2501)]
    with pa.memory_map(str(work_dir / "train.arrow")) as source:
        assert [len(batch) for batch in pa.ipc.open_stream(source)] == [2048, 452]


def test_the_jobs_events_say_what_was_found(work_dir_of: MakeWorkDir) -> None:
    said: list[AnyMessage] = []
    train = prepare(work_dir_of([{"prompt": "box 1:", "completion": text_of(4)}] * 3), said.append).train

    assert said == [
        messages.Phase(phase="preparing"),
        messages.Notice(
            level="info",
            message=f"file-train: 3 rows, {train.tokens} tokens, 12 of them trained"
            f" ({100 * 12 / train.tokens:.0f} %), longest row {train.longest_row} tokens",
        ),
        messages.Notice(
            level="warn",
            message="file-train: duplicate in 2 rows: line 2: the same row as line 1. Drop it, unless it shall count"
            " twice. The same in line 3.",
        ),
    ]


@pytest.mark.parametrize("name", ["training_file", "validation_file"])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "it is not JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n', "no message with role 'assistant'"),
        (b'{"prompt": "a", "completion": "b"}\n', "missing required field `messages`"),
    ],
)
def test_a_bad_row_is_named_by_its_file_and_line(work_dir_of: MakeWorkDir, name: str, line: bytes, says: str) -> None:
    good = tiny.jsonl(tiny.chat_rows(2))
    files = {"training_file": good, "validation_file": good, name: good + b"\n" + line + good}
    work_dir = work_dir_of(files["training_file"], validation=files["validation_file"])

    failed = refusal(work_dir)

    assert (failed.param, failed.code) == (name, f"invalid_{name}")
    assert failed.message.startswith("Line 4: ")
    assert says in failed.message


def test_a_file_without_rows_is_refused(work_dir_of: MakeWorkDir) -> None:
    assert refusal(work_dir_of(b"\n\n")).message.startswith("Line 1: the file has no rows")
    assert refusal(work_dir_of(tiny.chat_rows(1), validation=b"")).param == "validation_file"


def test_rows_that_are_too_long_are_all_counted_and_the_first_listed(work_dir_of: MakeWorkDir) -> None:
    long, short = {"prompt": "", "completion": text_of(21)}, {"prompt": "", "completion": text_of(20)}

    one = refusal(work_dir_of([short, long, short], max_length=20))
    many = refusal(work_dir_of([long, short, *[long] * 6], max_length=20))
    beyond = refusal(work_dir_of([{"prompt": "", "completion": text_of(257)}]))

    assert one.message.startswith("Line 2: it has 21 tokens, and max_length is 20. Shorten it")
    assert many.message.startswith("Line 1: it has 21 tokens")
    assert "send truncate: true" in many.message
    assert many.message.endswith("The same in line 3, line 4, line 5, line 6, line 7 and 1 more row.")
    assert beyond.message.startswith("Line 1: it has 257 tokens, and max_length is 256")
    assert {one.param, many.param, beyond.param} == {"training_file"}


def test_rows_that_are_too_long_are_cut_where_that_is_wished(work_dir_of: MakeWorkDir) -> None:
    rows = [{"prompt": "box", "completion": text_of(tokens)} for tokens in (40, 19, 20)]
    work_dir, whole_dir = work_dir_of(rows, max_length=20, truncate=True), work_dir_of(rows)

    train, whole = prepared(work_dir).train, prepared(whole_dir).train

    assert (train.rows, train.truncated_rows, train.longest_row) == (3, 2, 20)
    assert (whole.truncated_rows, whole.longest_row) == (0, 41)
    for cut, row in zip(rows_in(work_dir / "train.arrow"), rows_in(whole_dir / "train.arrow"), strict=True):
        assert (cut["input_ids"], cut["labels"]) == (row["input_ids"][:20], row["labels"][:20])
    assert train.tokens == 20 * 3
    assert train.trained_tokens == 19 * 3


@pytest.mark.parametrize("prompt", [20, 30])
def test_a_row_whose_answer_is_cut_away_is_refused(work_dir_of: MakeWorkDir, prompt: int) -> None:
    rows = [{"prompt": "box", "completion": " red"}, {"prompt": " box" * prompt, "completion": " red"}]

    failed = refusal(work_dir_of(rows, max_length=20, truncate=True))

    assert failed.param == "training_file"
    assert failed.message.startswith("Line 2: cut to 20 tokens, nothing of the answer is left. Shorten its prompt")
    rows[1]["prompt"] = " box" * 19
    assert prepared(work_dir_of(rows, max_length=20, truncate=True)).train.trained_tokens == 3


def test_a_row_of_one_token_is_refused(work_dir_of: MakeWorkDir) -> None:
    """Nothing goes before it that it could be predicted from."""
    failed = refusal(work_dir_of([*tiny.prompt_rows(1), {"prompt": "", "completion": "<|im_end|>"}]))

    assert failed.message.startswith("Line 2: there is nothing in it to learn")


def test_a_max_length_beyond_the_context_is_refused(work_dir_of: MakeWorkDir) -> None:
    failed = refusal(work_dir_of(tiny.chat_rows(1), max_length=257))

    assert (failed.param, failed.code) == (MAX_LENGTH, "invalid_value")
    assert failed.message == "Max_length 257 is beyond the model's context of 256 tokens."
    prepared(work_dir_of(tiny.chat_rows(1), max_length=256))


def test_train_on_all_trains_every_token(work_dir_of: MakeWorkDir) -> None:
    train = prepared(work_dir_of(tiny.chat_rows(3), train_on="all")).train

    assert train.trained_tokens == train.tokens > prepared(work_dir_of(tiny.chat_rows(3))).train.trained_tokens


def test_prepared_json_comes_last(work_dir_of: MakeWorkDir) -> None:
    """So its presence says that all is there: a bad validation file leaves the training rows, and no word of them."""
    work_dir = work_dir_of(tiny.chat_rows(2), validation=b"x\n")
    refusal(work_dir)
    assert len(rows_in(work_dir / "train.arrow")) == 2

    (work_dir / "validation_file").write_bytes(tiny.jsonl(tiny.chat_rows(1)))
    existed = []
    found = prepare(work_dir, lambda _: existed.append((work_dir / "prepared.json").exists()))
    assert set(existed) == {False}
    assert Prepared.model_validate_json((work_dir / "prepared.json").read_text()) == found
    assert {path.name for path in work_dir.iterdir()} == {
        *("job.json", "training_file", "validation_file"),
        *("train.arrow", "validation.arrow", "prepared.json"),
        *("report.json", "findings.jsonl"),
    }


def test_preparing_again_makes_the_same_bytes(work_dir_of: MakeWorkDir) -> None:
    one, other = work_dir_of(tiny.chat_rows(20)), work_dir_of(tiny.chat_rows(20))

    assert prepared(one) == prepared(other) == prepared(one)


def test_a_base_without_a_chat_template_reads_texts_and_no_conversations(work_dir_of: MakeWorkDir, base: Path) -> None:
    (base / "chat_template.jinja").unlink()

    failed = refusal(work_dir_of(tiny.chat_rows(1), model="mine"))

    assert (failed.param, failed.code) == ("model", "invalid_chat_template")
    assert "has no chat template" in failed.message
    assert prepared(work_dir_of(tiny.prompt_rows(1), model="mine")).base.chat_template_sha256 is None


def test_a_base_of_pickles_is_refused(work_dir_of: MakeWorkDir, base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")

    failed = refusal(work_dir_of(tiny.chat_rows(1), model="mine"))

    assert (failed.param, failed.code) == ("model", "unsafe_weights")
    assert "pickles" in failed.message


@pytest.mark.parametrize("damage", ["gone", "cut", "{}"])
def test_a_base_whose_tokenizer_is_missing_or_damaged_is_refused(
    work_dir_of: MakeWorkDir, base: Path, damage: str
) -> None:
    whole = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").unlink()
    if damage != "gone":
        (base / "tokenizer.json").write_text(whole[: len(whole) // 2] if damage == "cut" else damage)

    failed = refusal(work_dir_of(tiny.chat_rows(1), model="mine"))

    assert (failed.param, failed.code) == ("model", "model_not_usable")
    assert "its tokenizer cannot be loaded" in failed.message


def test_a_base_whose_config_does_not_say_its_size_is_refused(work_dir_of: MakeWorkDir, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    del config["max_position_embeddings"]
    (base / "config.json").write_text(json.dumps(config))

    failed = refusal(work_dir_of(tiny.chat_rows(1), model="mine"))

    assert (failed.param, failed.code) == ("model", "model_not_usable")
    assert "names none of max_position_embeddings" in failed.message


def test_a_base_that_is_not_there_is_refused(work_dir_of: MakeWorkDir) -> None:
    failed = refusal(work_dir_of(tiny.chat_rows(1), model="nobody"))

    assert (failed.param, failed.code) == ("model", "model_not_found")


def test_by_hand_it_prints_its_messages_as_json_lines_and_ends_well_without_torch(work_dir_of: MakeWorkDir) -> None:
    work_dir = work_dir_of(tiny.chat_rows(4))

    command = [sys.executable, "-X", "importtime", "-m", "worker.training.prepare", str(work_dir)]
    process = subprocess.run(command, env=os.environ, capture_output=True, timeout=120, check=False)

    assert process.returncode == 0, process.stderr
    said = [messages.decode(line) for line in process.stdout.splitlines()]
    assert [type(message) for message in said] == [messages.Phase, messages.Notice, messages.Done]
    imported = {line.split()[-1] for line in process.stderr.decode().splitlines() if line.startswith("import time:")}
    assert "transformers" in imported
    assert "torch" not in imported
    assert Prepared.model_validate_json((work_dir / "prepared.json").read_text()).train.rows == 4
