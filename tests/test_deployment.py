"""Dockerfile, docker-compose.yml and Makefile say the same, and what they say works without Docker.

No machine of ours builds the images, so each step in them that concerns the app is one that `make` also runs.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.cli import api
from app.cli.main import build
from app.settings import Settings, get_settings
from app.work.models import Worker
from tests.running import wait_for

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
EVERYWHERE = "0.0.0.0"  # noqa: S104  a container's own addresses; what reaches them is said by `ports`
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|DATABASE_URL")
SYSTEM = ("apt-get", "rm", "useradd", "install")
"""Programs of the system, by which an image is prepared before the app comes."""


class Instruction(NamedTuple):
    """One line of the Dockerfile, its continuations joined."""

    stage: str
    word: str
    rest: str


def dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        if word:
            found.append(Instruction(stage, word, rest))
    return found


def of_stage(stage: str, word: str) -> list[str]:
    return [one.rest for one in dockerfile() if one.stage == stage and one.word == word]


def made_by(target: str, **variables: str) -> list[list[str]]:
    """The commands that `make TARGET` would run, as lists of words."""
    given = [f"{name}={value}" for name, value in variables.items()]
    output = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target, *given],  # noqa: S607  whichever there is
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},
    ).stdout
    return [shlex.split(line) for line in output.splitlines()]


def command(target: str, **variables: str) -> list[str]:
    """The one command of a target that runs or looks at a part of the service."""
    (words,) = made_by(target, BIN=str(BIN), **variables)
    return words


def seconds(duration: str) -> float:
    """Of a compose file's durations, those in seconds."""
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_what_make_runs(name: str) -> None:
    assert of_stage(OURS[name]["build"]["target"], "ENTRYPOINT") == ['["finetuned"]']
    assert [str(BIN / "finetuned"), *OURS[name]["command"]] == command(f"run-{name}", HOST=EVERYWHERE)


@pytest.mark.parametrize(("name", "target"), [("api", "api"), ("worker", "worker"), ("prepare", "worker")])
def test_a_service_is_looked_at_as_make_does_it(name: str, target: str) -> None:
    kind, *words = OURS[name]["healthcheck"]["test"]

    assert kind == "CMD"
    assert [str(BIN / words[0]), *words[1:]] == command(f"health-{target}")


def test_a_service_is_a_command_that_exists() -> None:
    commands = set(typer.main.get_command(build()).commands)  # type: ignore[attr-defined]  # it is a group

    assert set(OURS) == {"migrate", "api", "worker", "prepare", "sweeper"}
    assert {service["command"][0] for service in OURS.values()} <= commands


@pytest.mark.parametrize("stage", ["api", "worker"])
def test_an_image_is_made_by_make(stage: str) -> None:
    targets = []
    for line in of_stage(f"{stage}-build", "RUN") + of_stage(stage, "RUN"):
        if line.startswith("make "):
            target, *given = shlex.split(line)[1:]
            assert made_by(target, **dict(one.split("=", 1) for one in given))
            targets.append(target)
        else:
            assert {part.split()[0] for part in line.split("&&")} <= set(SYSTEM), line

    assert (
        targets
        == {
            "api": ["install-api", "install-code"],
            "worker": ["install-worker", "install-gpu", "install-code"],
        }[stage]
    )


def test_flash_attn_comes_after_torch_on_a_line_of_its_own() -> None:
    assert made_by("install-worker")[-1][-1] == ".[worker,s3,otel]"
    assert made_by("install-gpu")[-1][-2:] == ["--no-build-isolation", ".[gpu]"]
    assert not any("gpu" in word for word in made_by("install-worker")[-1])


def test_what_torch_does_not_need_is_installed_without_it() -> None:
    assert made_by("install-api")[-1][-1] == ".[s3,otel]"
    assert {name for name, service in OURS.items() if service["build"]["target"] == "api"} == {
        "migrate",
        "api",
        "sweeper",
    }


def test_the_api_image_has_what_its_services_import(servers: None) -> None:
    """Here everything is installed; what the image would lack is refused."""
    code = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules_beyond("s3")!r}:
            raise ModuleNotFoundError(f"the image has no {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
import app.main, app.cli.main, worker.sweeper
from app.cli.migrate import upgrade
from app.queue import get_celery

upgrade()
get_celery().connection_for_write().ensure_connection(max_retries=1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def modules_beyond(extra: str) -> set[str]:
    """Top-level modules of this environment that the project, installed with an extra, would not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {"finetuned"}
    to_do = {Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"][extra])}
    seen = set(to_do)
    while to_do:
        one = to_do.pop()
        brought.add(canonicalize_name(one.name))
        required = {Requirement(text) for text in requirements_of(one.name)}
        wanted = {each for each in required if each.marker is None or _asked(each.marker, one.extras)}
        to_do |= wanted - seen
        seen |= wanted
    owners = metadata.packages_distributions()
    return {module for module, names in owners.items() if not brought & {canonicalize_name(name) for name in names}}


def requirements_of(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # for another system, or of an extra that no test needs
        return []


def _asked(marker: Marker, extras: set[str]) -> bool:
    return any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


@pytest.mark.parametrize("stage", ["api", "worker"])
def test_an_image_does_not_run_as_root(stage: str) -> None:
    (user,) = of_stage(stage, "USER")
    (account,) = [line for line in of_stage(stage, "RUN") if "useradd" in line]

    assert int(user) > 0
    assert f"--uid {user} " in account


def test_an_image_has_a_folder_of_its_user_where_a_volume_comes() -> None:
    """A new volume takes over its owner; without it, the service could not write there."""
    for service in OURS.values():
        (prepared,) = [line for line in of_stage(service["build"]["target"], "RUN") if "install -d" in line]
        for mounted in service.get("volumes", []):
            parts = re.fullmatch(r"(.+?):(/[^:]+)(?::ro)?", mounted)
            assert parts is not None, mounted
            source, path = parts.groups()
            assert path in prepared.split("install -d")[1].split()
            assert re.sub(r"\$\{\w+:-(\w+)\}", r"\1", source) in COMPOSE["volumes"]


def test_the_build_is_given_all_that_it_copies() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for one in dockerfile() if one.word == "COPY" for word in one.rest.split()[:-1]]

    assert {"app", "worker", "migrations"} <= set(let_in)
    assert all((ROOT / path).exists() for path in let_in)
    assert {word for word in copied if not word.startswith(("--from", "/opt", "."))} <= set(let_in)


def test_every_setting_is_one_of_the_service() -> None:
    given = [name for service in OURS.values() for name in service["environment"]]
    given += [pair.split("=")[0] for one in dockerfile() if one.word == "ENV" for pair in one.rest.split()]
    example = re.findall(r"^#? ?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    settings = {f"FINETUNED_{name}".upper() for name in Settings.model_fields}

    assert {name for name in [*given, *example] if name.startswith("FINETUNED_")} <= settings


def test_no_secret_has_a_value() -> None:
    secrets = {
        name: value
        for service in SERVICES.values()
        for name, value in (service.get("environment") or {}).items()
        if SECRET.search(name)
    }
    example = dict(re.findall(r"^#? ?(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert {"POSTGRES_PASSWORD", "FINETUNED_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} <= set(secrets)
    assert all(value is None or "${POSTGRES_PASSWORD:?" in value for value in secrets.values())
    assert not any(value for name, value in example.items() if SECRET.search(name))


def test_only_the_api_can_be_reached_and_from_this_machine_alone() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["${BIND_ADDRESS:-127.0.0.1}:${PORT:-8000}:8000"]
    }


def test_whoever_is_waited_for_says_when_it_is_ready() -> None:
    for service in OURS.values():
        for name, wait in service["depends_on"].items():
            match wait["condition"]:
                case "service_healthy":
                    assert SERVICES[name]["healthcheck"]["test"]
                case "service_completed_successfully":
                    assert SERVICES[name]["restart"] == "no"
                case other:
                    pytest.fail(other)


def test_all_but_the_migration_are_started_again() -> None:
    assert {service["restart"] for name, service in SERVICES.items() if name != "migrate"} == {"unless-stopped"}


def test_a_container_is_not_killed_before_its_process_would_end() -> None:
    for name in ("worker", "prepare"):
        grace = seconds(OURS[name]["environment"]["FINETUNED_SHUTDOWN_GRACE"])
        assert timedelta(seconds=grace) >= get_settings().shutdown_grace
        assert seconds(OURS[name]["stop_grace_period"]) >= grace + 15
    assert seconds(OURS["api"]["stop_grace_period"]) > api.STOP_WITHIN


def test_docker_compose_accepts_the_file() -> None:
    client = compose_client()
    if client is None:
        pytest.skip("needs a docker compose client")

    accepted, refused = configured(client, "some-password"), configured(client, "")

    assert accepted.returncode == 0, accepted.stderr
    assert refused.returncode != 0
    assert "set it in .env" in refused.stderr


def compose_client() -> list[str] | None:
    """`docker compose`, or the older `docker-compose`, which knows these parts of the format too."""
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]) and subprocess.run([*client, "version"], capture_output=True).returncode == 0:
            return client
    return None


def configured(client: list[str], password: str) -> subprocess.CompletedProcess[str]:
    """The client, having checked the file."""
    environment = {**os.environ, "POSTGRES_PASSWORD": password}
    return subprocess.run(
        [*client, "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.long
def test_the_commands_work_in_the_order_of_the_compose_file(session: Session, tmp_path: Path) -> None:
    port = str(free_port())
    environment = {**os.environ, "FINETUNED_HOME": str(tmp_path), "FINETUNED_STANDBY": "0"}

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    assert run(command("run-migrate")).returncode == 0
    refused = run(command("run-api", HOST=EVERYWHERE, PORT=port))
    assert (refused.returncode, "no API key yet" in refused.stderr) == (1, True)
    key = run([str(BIN / "finetuned"), "keys", "create", "laptop"]).stdout.strip()
    listed = run([str(BIN / "finetuned"), "keys", "list"]).stdout
    assert re.search(r"^key_\w+ +laptop +default +proj_\w+ +20", listed, re.MULTILINE), listed
    assert key
    assert key not in listed

    with ExitStack() as stack:
        for target in ("api", "sweeper"):
            stack.enter_context(running(command(f"run-{target}", HOST=EVERYWHERE, PORT=port), environment))
        wait_for(lambda: run(command("health-api", PORT=port)).returncode == 0)
        assert run(command("health-worker")).returncode == 1
        for target in ("worker", "prepare"):
            stack.enter_context(running(command(f"run-{target}"), environment))
        wait_for(lambda: run(command("health-worker")).returncode == 0)
        wait_for(lambda: {"prepare"} < set(heard(session)), every=0.2)

    assert heard(session) == []  # each was struck off when it ended in order


@contextmanager
def running(words: list[str], environment: dict[str, str]) -> Iterator[None]:
    """A part of the service, told to end as Docker tells it; it must do so by itself."""
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, words
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM), words  # uvicorn ends in order, then by the signal
    finally:
        process.kill()
        process.wait()


def heard(session: Session) -> list[str]:
    with session.begin():
        return list(session.scalars(select(Worker.queue)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
