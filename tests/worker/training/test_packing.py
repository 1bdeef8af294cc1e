"""Packs: whole rows in as few sequences as fit, that learn what the rows alone would learn."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from app.jobs.prepared import Prepared
from app.planning.recipes import KEEPS_ROWS_APART
from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.messages import AnyMessage
from worker.training import failures, model, packing
from worker.training.data import rows_of
from worker.training.labels import IGNORED
from worker.training.train import make_ready

PACKING = "method.supervised.hyperparameters.packing"
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, spare=st.integers(0, 50), most_rows=st.none() | st.integers(1, 5))
def test_each_row_is_whole_in_one_pack_that_it_fits_into(lengths: list[int], spare: int, most_rows: int | None) -> None:
    capacity = max(lengths) + spare

    packs = packing.plan(lengths, capacity, most_rows=most_rows)

    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= capacity for pack in packs)
    assert all(len(pack) <= (most_rows or len(lengths)) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)
    assert packs == packing.plan(lengths, capacity, most_rows=most_rows)


@given(lengths=LENGTHS, spare=st.integers(0, 50))
def test_a_row_begins_no_pack_where_another_has_room(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    tokens = [sum(lengths[row] for row in pack) for pack in packing.plan(lengths, capacity)]

    assert all(one + other > capacity for at, one in enumerate(tokens) for other in tokens[:at])


def test_the_best_fitting_pack_is_chosen() -> None:
    # 6 and 5 open a pack each; the 4 goes where it leaves nothing, so that 3 and 2 go to the other.
    assert packing.plan([2, 3, 4, 5, 6], 10) == [[0, 1, 3], [2, 4]]


def test_no_row_is_split() -> None:
    with pytest.raises(ValueError, match="a row of 11 tokens goes into no pack of 10"):
        packing.plan([4, 11], 10)


COMMON = ("gemma", "llama", "mistral", "qwen2", "qwen3")
"""Families that each test run looks at; the others are left to `make test-all`."""


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 100])
def test_the_share_saved_is_the_padding_of_random_batches(batch: int) -> None:
    chance = random.Random(0)  # noqa: S311  no secret
    lengths = [chance.choice([3, 10, 10, 40, 200]) for _ in range(50)]
    shares = []
    for _ in range(400):
        chance.shuffle(lengths)
        batches = [lengths[at : at + batch] for at in range(0, 50, batch)]
        shares.append(sum(len(rows) * max(rows) for rows in batches))
    computed = sum(shares) / len(shares)

    assert packing.saved_share(lengths, batch) == pytest.approx(1 - sum(lengths) / computed, abs=0.01)


def test_rows_of_one_length_leave_nothing_to_save() -> None:
    assert packing.saved_share([7] * 10, 4) == pytest.approx(0)


def test_a_packed_set_holds_the_rows_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TOKENS_A_BATCH", 100)  # several batches out, as several come in
    rows: list[dict[str, Any]] = [
        {
            "input_ids": [n] * (1 + n % 30),
            "labels": [IGNORED, *[n] * (n % 30)],
            "rows": [n],
            "lines": [None if n == 50 else 2 * n],  # as in Parquet, which has none
        }
        for n in range(100)
    ]
    schema = pa.schema([(name, packing.LIST) for name in ("input_ids", "labels", "rows", "lines")])
    with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), schema) as writer:
        for at in range(0, 100, 33):
            writer.write_table(pa.Table.from_pylist(rows[at : at + 33], schema=schema))

    count = packing.pack(tmp_path / "rows.arrow", tmp_path / "packs.arrow", 64)

    lengths = packing.lengths_of(tmp_path / "rows.arrow").tolist()
    assert lengths == [len(row["input_ids"]) for row in rows]
    expected = [[rows[row] for row in pack] for pack in packing.plan(lengths, 64)]
    with pa.memory_map(str(tmp_path / "packs.arrow")) as packs:
        assert pa.ipc.open_stream(packs).read_all().to_pylist() == [
            {
                **{name: [value for row in pack for value in row[name]] for name in schema.names},
                "seq_lengths": [len(row["input_ids"]) for row in pack],
            }
            for pack in expected
        ]
    assert count == len(expected) < 50
    assert set(rows_of(tmp_path / "packs.arrow").column_names) == {"input_ids", "labels", "seq_lengths"}
    with pytest.raises(ValueError, match="packed already"):
        packing.pack(tmp_path / "packs.arrow", tmp_path / "again.arrow", 64)


def test_rows_stay_on_the_disk_until_they_are_read(tmp_path: Path) -> None:
    values = pa.ListArray.from_arrays(pa.array(range(0, 2_000_001, 1000), pa.int32()), pa.nulls(2_000_000, pa.int32()))
    batch = pa.record_batch([values, values], names=["input_ids", "labels"])
    with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    del values, batch, writer
    before = pa.total_allocated_bytes()

    rows = rows_of(tmp_path / "rows.arrow")
    assert len(rows[1999]["input_ids"]) == 1000

    assert [file["filename"] for file in rows.cache_files] == [str(tmp_path / "rows.arrow")]
    assert (tmp_path / "rows.arrow").stat().st_size > 16_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def model_of(family: str, attention: str) -> PreTrainedModel:
    """A model of one of transformers' families, with weights large enough for rows to matter to each other."""
    config = AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    if getattr(config, "sliding_window", None):
        config.sliding_window = 6  # shorter than a row: it has to begin anew as well
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in COMMON else pytest.mark.long) for family in sorted(KEEPS_ROWS_APART)],
)
def test_packed_and_unpacked_losses_and_gradients_agree(family: str, attention: str) -> None:
    model = model_of(family, attention)
    drawn = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 64, (length,), generator=drawn).tolist() for length in (9, 14, 2, 5)]
    ids = [token for row in rows for token in row]
    pack = {"input_ids": ids, "labels": ids, "seq_lengths": [len(row) for row in rows]}
    packed = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([pack])
    unpacked = DataCollatorForLanguageModeling(pad_token_id=0)([{"input_ids": row, "labels": row} for row in rows])

    (loss, gradients), (expected, expected_gradients) = (_learnt(model, batch) for batch in (packed, unpacked))

    assert packed["cu_seq_lens_q"].tolist() == [0, 9, 23, 25, 30]  # FlashAttention reads no positions, but these
    assert loss == pytest.approx(expected, abs=1e-5)
    assert loss != pytest.approx(_learnt(model, {**packed, "position_ids": torch.arange(30)[None]})[0], abs=1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def _learnt(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("tuning", "train_on"), [("full", "all"), ("lora", "all"), ("qlora", "completion")])
def test_steps_of_the_same_rows_are_the_same_steps(make_job: Any, run: Any, tuning: str, train_on: str) -> None:
    """Each step of both jobs holds all rows: one whole batch with padding, and all packs one after another."""
    rows = tiny.chat_rows(12)
    shared = {"rows": rows, "validation": tiny.chat_rows(5), "n_epochs": 2, "max_length": 100, "train_on": train_on}
    packed = make_job(tuning, **shared, packing=True, batch_size=4, per_device_train_batch_size=1)
    unpacked = make_job(tuning, **shared, batch_size=12, per_device_train_batch_size=4)
    assert prepared(packed).train.packs == 4

    ours, theirs = run(packed), run(unpacked)

    assert [step.loss for step in steps(ours)] == pytest.approx([step.loss for step in steps(theirs)], abs=1e-5)
    assert [step.tokens for step in steps(ours)] == [step.tokens for step in steps(theirs)]
    assert [step.tokens for step in steps(ours)] == [prepared(packed).train.tokens * epoch for epoch in (1, 2)]
    assert [step.epoch for step in steps(ours)] == [1, 2]
    assert all(step.mean_token_accuracy is not None for step in steps(ours))


def test_max_steps_counts_steps_of_packs(make_job: Any, run: Any) -> None:
    said = steps(run(make_job("lora", packing=True, batch_size=2, max_length=100, max_steps=2)))

    assert [(step.step, step.total_steps) for step in said] == [(1, 2), (2, 2)]


def test_the_validation_loss_is_that_of_a_job_without_packing(make_job: Any, run: Any) -> None:
    # Before anything has moved, and with batches of rows as the recipe has them, which the last mean depends on.
    uneven = [{"prompt": "box:", "completion": " red" * (1 + index % 3)} for index in range(5)]
    shared = {"validation": uneven, "learning_rate": 1e-12, "n_epochs": 1}
    packed = make_job("lora", **shared, packing=True, batch_size="auto", max_length=100)
    unpacked = make_job("lora", **shared, batch_size="auto", packing=False)

    (ours,), (theirs,) = (evaluations(run(work_dir)) for work_dir in (packed, unpacked))

    assert prepared(packed).validation == prepared(unpacked).validation
    assert (ours.loss, ours.mean_token_accuracy) == pytest.approx((theirs.loss, theirs.mean_token_accuracy), abs=1e-6)


def test_packs_laid_side_by_side_are_as_exact_as_packs_by_themselves(make_job: Any, run: Any) -> None:
    shared = {"packing": True, "batch_size": 4, "max_length": 100, "n_epochs": 1}
    apart = make_job("full", **shared, per_device_train_batch_size=1)
    together = make_job("full", **shared, per_device_train_batch_size=4)

    losses = [[step.loss for step in steps(run(work_dir))] for work_dir in (apart, together)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_auto_packs_rows_of_very_different_lengths(make_job: Any, run: Any) -> None:
    mixed = [*tiny.prompt_rows(40), *({"prompt": "box " * 60, "completion": " red"} for _ in range(8))]

    work_dir = make_job("lora", rows=mixed, batch_size="auto", n_epochs=1)

    found, resolved = prepared(work_dir).train, hyperparameters(work_dir)
    assert found.packing_saves > 0.2
    assert (resolved["packing"], resolved["per_device_train_batch_size"]) == (True, 1)
    assert found.packs is not None
    assert resolved["batch_size"] * found.rows / found.packs == pytest.approx(16, rel=0.3)
    assert steps(run(work_dir))[-1].tokens == found.tokens
    assert hyperparameters(make_job("lora", rows=mixed, batch_size=16))["packing"] is False
    assert hyperparameters(make_job("lora", rows=tiny.chat_rows(48), batch_size="auto"))["packing"] is False
    assert hyperparameters(make_job("full", rows=mixed, batch_size="auto"))["packing"] is False  # a row at a time


def test_a_resolved_spec_makes_the_same_packs_again(make_job: Any) -> None:
    mixed = [*tiny.prompt_rows(40), *({"prompt": "box " * 60, "completion": " red"} for _ in range(8))]
    work_dir = make_job(
        "lora", rows=mixed, validation=[{"prompt": "box " * 80, "completion": " red"}], batch_size="auto"
    )
    before, spec = prepared(work_dir), hyperparameters(work_dir)

    (work_dir / "prepared.json").unlink()
    make_ready(work_dir, lambda _: None)

    assert before.train.packs is not None
    assert (prepared(work_dir), hyperparameters(work_dir)) == (before, spec)


def test_a_base_whose_rows_see_each_other_is_refused(make_job: Any, run: Any, bases: Path) -> None:
    _make_opt(bases / "opt")
    with pytest.raises(failures.PackingNotSupported) as caught:
        run(make_job("lora", model="opt", packing=True))
    failed = failures.classify(caught.value, "supervised")
    assert (failed.code, failed.param, failed.retryable) == ("packing_not_supported", PACKING, False)
    assert failed.message.startswith("With this base model the rows of a pack would see each other.")

    assert run(make_job("lora", model="opt", max_steps=1))[-1] == messages.Done()


def test_what_bf16_rounds_is_not_taken_for_another_row(
    make_job: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", "bf16")
    monkeypatch.setattr(model, "PROBE_TOKENS", 13)  # of 16 the sums are the same to the last bit

    for tuning in ("full", "lora"):
        assert run(make_job(tuning, packing=True, max_steps=1))[-1] == messages.Done()


def _make_opt(folder: Path) -> None:
    """Learned positions that are counted on through a pack, and a mask that does not divide it."""
    tokenizer = tiny.make_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepared(work_dir: Path) -> Prepared:
    return Prepared.model_validate_json((work_dir / "prepared.json").read_text())


def hyperparameters(work_dir: Path) -> dict[str, Any]:
    spec = json.loads((work_dir / "job.json").read_text())
    found: dict[str, Any] = spec["method"]["supervised"]["hyperparameters"]
    return found


def evaluations(said: list[AnyMessage]) -> list[messages.Eval]:
    return [message for message in said if isinstance(message, messages.Eval)]
