"""The command at work on a running server, as a person and as a script use it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.running import Service, wait_for

LONG: dict[str, Any] = {"max_steps": 30, "batch_size": 4, "per_device_train_batch_size": 1}


def start(service: Service, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command beside its `up`: the home is all that it is told."""
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments],
        env={"PATH": os.environ["PATH"], "FINETUNED_HOME": str(service.home)},
        text=True,
        # Where the tests run in the background of a shell, SIGINT is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


def finetuned(service: Service, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command prints, and says beside it, once it has ended with a code."""
    process = start(service, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    return out, err


def write_spec(folder: Path, rows: int = 16, model: str = "tiny", **hyperparameters: Any) -> Path:
    tiny.write_jsonl(folder / "rows.jsonl", tiny.chat_rows(rows))
    lines = "".join(f"      {name}: {value}\n" for name, value in hyperparameters.items())
    (folder / "job.yaml").write_text(
        f"# a job\nmodel: {model}\ntraining_file: rows.jsonl\nseed: 7\nmethod:\n  type: supervised\n  supervised:\n"
        f"    hyperparameters:\n{lines}tuning:\n  type: lora\n"
    )
    return folder / "job.yaml"


def test_a_job_is_written_submitted_watched_and_downloaded(service: Service, tmp_path: Path) -> None:
    out, _ = finetuned(service, "init", str(tmp_path))
    spec = tmp_path / "job.yaml"
    assert out.splitlines() == [str(spec), str(tmp_path / "rows.jsonl")]
    _, err = finetuned(service, "init", str(tmp_path), code=1)
    assert "is there already" in err
    spec.write_text(spec.read_text().replace("smollm2-135m-instruct", "tiny").replace("n_epochs: 3", "n_epochs: 1"))

    out, err = finetuned(service, "submit", str(spec), "--watch")

    job_id = out.splitlines()[0]
    assert "rows.jsonl: file-" in err
    assert re.search(r"^\d\d:\d\d:\d\d Fine-tuning job started on ", out, re.MULTILINE)
    assert re.search(r"step 2/2  loss \d+\.\d{4}  rate \S+  [\d,]+ tokens/s  0:00 left", out)
    job = service.client().fine_tuning.jobs.retrieve(job_id)
    assert out.splitlines()[-1] == f"Get it: finetuned download {job.fine_tuned_model}"
    listed, _ = finetuned(service, "models")
    assert str(job.fine_tuned_model) in listed
    out, _ = finetuned(service, "download", str(job.fine_tuned_model), "--to", str(tmp_path / "models"))
    assert (Path(out.strip()) / "adapter_model.safetensors").is_file()
    out, _ = finetuned(service, "verify", str(job.fine_tuned_model))
    assert out.rstrip().endswith("every byte as it was published")
    table, _ = finetuned(service, "jobs", "--status", "succeeded", "-n", "1")
    assert job_id in table
    assert "2/2, loss" in table


def test_the_same_rows_are_uploaded_once(service: Service, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, rows=17, **LONG)
    jobs = [json.loads(finetuned(service, "submit", str(spec), "--json")[0]) for _ in range(2)]
    assert jobs[0]["id"] != jobs[1]["id"]
    assert jobs[0]["training_file"] == jobs[1]["training_file"]
    file_id, _ = finetuned(service, "files", "upload", str(tmp_path / "rows.jsonl"))
    assert file_id.strip() == jobs[0]["training_file"]
    for job in jobs:
        assert json.loads(finetuned(service, "cancel", job["id"], "--json")[0])["id"] == job["id"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("n_epochs: 0", "job.yaml, line 9: method.supervised.hyperparameters.n_epochs: "),
        ("n_epoch: 1", "job.yaml, line 9: method.supervised.hyperparameters.n_epoch: Unknown field"),
        ("n_epochs: [", "is not YAML"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(service: Service, tmp_path: Path, wrong: str, says: str) -> None:
    hyperparameters: dict[str, Any] = dict([wrong.split(": ")])
    spec = write_spec(tmp_path, **hyperparameters)
    _, err = finetuned(service, "submit", str(spec), code=1)
    assert says in err
    assert "Traceback" not in err


def test_rows_that_cannot_be_trained_on_are_named(service: Service, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, n_epochs=1)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\nno JSON\n')
    _, err = finetuned(service, "submit", str(spec), code=1)
    assert "line 2: it is not JSON" in err


def test_a_job_that_fails_says_why_what_to_try_and_what_its_trainer_printed_last(
    service: Service, tmp_path: Path
) -> None:
    """Its base's weights are of another shape than its config says, which nothing but loading them finds out."""
    base = tiny.make_base(service.home / "models" / "misshapen")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))

    out, err = finetuned(service, "submit", str(write_spec(tmp_path, model="misshapen", max_steps=1)), "-w", code=1)

    job_id = out.splitlines()[0]
    error = service.client().fine_tuning.jobs.retrieve(job_id).error
    assert error is not None
    assert error.code == "internal_error"
    assert error.model_extra is not None
    *_, last = lines = error.model_extra["log_lines"]  # of the stock client's model
    assert last.startswith("RuntimeError: ")
    assert error.message.startswith(last[:40])
    told = err[err.index(f"{job_id} failed") :].splitlines()
    assert told[-len(lines) - 2 :] == [
        "The trainer's last lines:",
        *(f"    {line}" for line in lines),
        f"Its whole log: finetuned logs {job_id}",
    ]
    (attempt,) = service.attempts(job_id)
    assert attempt["error"]["log_lines"] == lines
    assert service.get("/v1/fine_tuning/jobs?limit=1")["data"][0]["error"]["log_lines"] is None


def test_used_wrongly_it_ends_with_2_and_without_a_server_with_1(service: Service, tmp_path: Path) -> None:
    finetuned(service, "jobs", "--limit", "0", code=2)
    finetuned(service, "watch", code=2)
    _, err = finetuned(service, "watch", "ftjob-none", code=1)
    assert "No such fine-tuning job" in err
    nobody = subprocess.run(
        [sys.executable, "-m", "app.cli", "jobs"],
        env={"PATH": os.environ["PATH"], "FINETUNED_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "start one with 'finetuned up'" in nobody.stderr


@pytest.mark.long
def test_a_watched_job_is_not_lost_with_its_connection(service: Service, tmp_path: Path) -> None:
    """The api is killed in the middle; `up` starts it again, and every event comes once."""
    job_id = finetuned(service, "submit", str(write_spec(tmp_path, **LONG)))[0].splitlines()[0]
    watching = start(service, "watch", job_id, "--json")
    wait_for(lambda: service.steps(job_id), 120)
    api = service.part("app.cli.api")
    assert api is not None
    api.kill()
    out, err = watching.communicate(timeout=120)
    assert watching.returncode == 0, err
    *events, job = map(json.loads, out.splitlines())
    assert "Connection lost" in err
    assert [event["id"] for event in events] == [event.id for event in service.events(job_id)]
    assert (job["id"], job["status"]) == (job_id, "succeeded")


@pytest.mark.long
def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(service: Service, tmp_path: Path) -> None:
    watching = start(service, "submit", str(write_spec(tmp_path, **LONG)), "--watch")
    assert watching.stdout is not None
    job_id = watching.stdout.readline().strip()
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == 1
    assert f"finetuned watch {job_id}" in err
    assert f"finetuned cancel {job_id}" in err
    assert "Traceback" not in err
    out, _ = finetuned(service, "pause", job_id)
    assert re.fullmatch(rf"{job_id} is \w+, pausing\n|{job_id} is paused\n", out)
    wait_for(lambda: finetuned(service, "jobs", "-q", job_id, "--json")[0].find('"paused"') > 0, 60)
    assert finetuned(service, "resume", job_id)[0] == f"{job_id} is queued\n"
    finetuned(service, "cancel", job_id)
    out, err = finetuned(service, "watch", job_id, code=1)
    assert "The job was cancelled" in out
    assert f"{job_id} is cancelled" in err


@pytest.mark.long
def test_a_log_is_followed_to_its_end(service: Service, tmp_path: Path) -> None:
    job_id = finetuned(service, "submit", str(write_spec(tmp_path, max_steps=2)))[0].splitlines()[0]
    followed, _ = finetuned(service, "logs", job_id, "-f")
    assert "== train, attempt 1 ==" in followed
    assert finetuned(service, "logs", job_id)[0] == followed


@pytest.mark.long
def test_on_a_terminal_there_is_a_bar(service: Service, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(service, "submit", str(write_spec(tmp_path, max_steps=3)), "-w", stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += piece
    os.close(ours)
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "training" in text
    assert "100%" in text
    assert "step 3/3" in text
    assert "succeeded after" in text
