"""Jobs for the trainer to run in this process, on a tiny base; and whose warnings are not ours to mend."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from app.jobs.spec import JobSpec
from tests import tiny
from worker import messages
from worker.messages import AnyMessage
from worker.training.child import StopRequest
from worker.training.train import make_ready, train

HERE = Path(__file__).parent

NOT_OURS = (
    # TRL 1.16 turns checkpointing on by the name that transformers 5.24 has renamed; 5.2 knows only the old one.
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_kwargs` is deprecated:FutureWarning",
    # TRL and PEFT ask a model for the old name of the same.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning",
)

Heard = Callable[[AnyMessage, StopRequest], None]


class MakeJob(Protocol):
    """Writes a prepared WORKDIR."""

    def __call__(
        self,
        tuning: str,
        *,
        rows: list[dict[str, Any]] | None = None,
        validation: list[dict[str, Any]] | None = None,
        model: str = "tiny",
        block: dict[str, Any] | None = None,
        method: str = "supervised",
        grader: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> Path: ...


class Run(Protocol):
    """Trains a WORKDIR in this process; `heard` may make a wish at any message, as a signal would."""

    def __call__(self, work_dir: Path, heard: Heard | None = None) -> list[AnyMessage]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for warning in NOT_OURS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.make_base(folder / "tiny", dtype=torch.bfloat16)
    return folder


@pytest.fixture(autouse=True)
def _small_and_exact(bases: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, fp32: what two runs compute is then the same to the last bit or two."""
    monkeypatch.setenv("FINETUNED_MODELS_DIR", str(bases))
    monkeypatch.setenv("FINETUNED_TORCH_THREADS", "1")
    monkeypatch.setenv("FINETUNED_PRECISION", "fp32")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    def make(
        tuning: str,
        *,
        rows: list[dict[str, Any]] | None = None,
        validation: list[dict[str, Any]] | None = None,
        model: str = "tiny",
        block: dict[str, Any] | None = None,
        method: str = "supervised",
        grader: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> Path:
        work_dir = tmp_path / f"job-{len(list(tmp_path.glob('job-*')))}"
        work_dir.mkdir()
        tiny.write_jsonl(work_dir / "training_file", rows or tiny.chat_rows(16))
        if validation:
            tiny.write_jsonl(work_dir / "validation_file", validation)
        chosen = {"n_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, **hyperparameters}
        its = {"hyperparameters": chosen} | ({"grader": grader or tiny.GRADER} if method == "reinforcement" else {})
        spec = {
            "model": model,
            "training_file": "file-train",
            "validation_file": "file-validation" if validation else None,
            "seed": 7,
            "method": {"type": method, method: its},
            "tuning": {"type": tuning, **(block or {})},
        }
        (work_dir / "job.json").write_text(JobSpec.model_validate_json(json.dumps(spec)).model_dump_json())
        make_ready(work_dir, lambda _: None)
        return work_dir

    return make


@pytest.fixture
def run() -> Iterator[Run]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def start(work_dir: Path, heard: Heard | None = None) -> list[AnyMessage]:
        stop, said = StopRequest(), list[AnyMessage]()

        def report(message: AnyMessage) -> None:
            said.append(message)
            if heard is not None:
                heard(message, stop)

        said.append(train(work_dir, report, stop))
        return said

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


def steps(said: list[AnyMessage]) -> list[messages.Metrics]:
    return [message for message in said if isinstance(message, messages.Metrics)]
