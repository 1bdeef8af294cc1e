"""Every environment variable, named once: `FINETUNED_` and the field's name. Durations are in seconds.

A trainer reads no settings; it has two variables of its own, `FINETUNED_PRECISION` and `FINETUNED_TORCH_THREADS`, in
`worker/training/device.py`.
"""

from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _seconds(given: object) -> object:
    """Environment variables are text; theirs is a number of seconds."""
    return timedelta(seconds=float(given)) if isinstance(given, str | int | float) else given


def _networks(given: object) -> object:
    if not isinstance(given, str):
        return given
    return tuple(ip_network(one.strip()) for one in given.split(",") if one.strip())


Duration = Annotated[timedelta, BeforeValidator(_seconds)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]
"""Comma-separated, such as `10.1.0.0/16,fd00::/8`."""


class Settings(BaseSettings):
    """What a process of the service is told by its environment."""

    model_config = SettingsConfigDict(env_prefix="FINETUNED_", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".finetuned")
    database_url: str = ""
    broker_url: str = ""
    storage_url: str = ""
    """`file:///folder` or `s3://bucket/prefix`; empty: the folder `storage` of the home."""
    models_dir: Path | None = None
    """Its subfolders are the local base models; None: the folder `models` of the home."""
    hub_models: str = "*"
    """Hub ids that jobs may name, as comma-separated patterns; those without a `*` are listed by `GET /v1/models`."""

    database_pool_size: int = 10
    database_connect_timeout: Duration = timedelta(seconds=5)
    statement_timeout: Duration = timedelta(seconds=30)

    log_format: Literal["text", "json"] = "text"
    """`json`: an object a line, which names the job, the attempt or the request that it is about."""
    metrics_token: SecretStr | None = None
    """What opens `/metrics`, and nothing else does then; None: any API key does."""

    cors_origins: str = ""
    """Where dashboards in a browser come from, comma-separated, such as `https://dash.example.com`; empty: nowhere."""

    max_file_bytes: int = 2 * 1024**3
    """Of a file, uploaded whole or in parts."""
    max_project_bytes: int = 1024**4
    """Of all files that a project has."""
    upload_idle_timeout: Duration = timedelta(seconds=30)
    """How long a body may bring nothing."""
    upload_slowest: int = 16 * 1024
    """Bytes a second that a body must bring on average, after a minute's grace."""
    max_body_bytes: int = 256 * 1024
    """Of a JSON body; a job spec has some 2 kB."""

    file_sources: str = ""
    """What a file's `source` may begin with, comma-separated: `hf://datasets/org,s3://bucket/folder`; empty: nothing.
    """
    source_options: dict[str, dict[str, Any]] = {}
    """What fsspec is told for a scheme, as JSON: `{"hf": {"token": "…"}, "s3": {"key": "…", "secret": "…"}}`."""
    refuse_above: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Shares of a file's rows above which a kind of finding refuses it, as JSON: `{"duplicate": 0.5, "secret": 0}`."""
    benchmarks_dir: Path | None = None
    """Files with questions that no training row shall have, one a benchmark; None: the folder `benchmarks` of the home.
    """
    prepared_sets_kept: Duration = timedelta(days=7)
    """How long tokenised rows are kept that no job uses."""
    dry_runs: bool = True
    """Follow each plan by a dry run of its step, some ten seconds of one core on the `prepare` queue."""
    plans_kept: Duration = timedelta(days=30)
    """How long a plan can be asked for again, and its dry run saves another."""

    worker_class: Annotated[str, Field(pattern=r"^(cpu|gpu-[1-9][0-9]*)$")] | None = None
    """`cpu` or `gpu-<GB>`; None: what the worker's device is."""
    checkpoints_kept: int = 10
    """Of a job, as models of the registry: the newest, and the best by validation loss."""
    checkpoints_kept_every: Annotated[int, Field(ge=1)] | None = None
    """Steps: each checkpoint whose step is a multiple stays as well; None: none of them."""
    heartbeat_interval: Duration = timedelta(seconds=10)
    lease_timeout: Duration = timedelta(seconds=60)  # six missed heartbeats
    sweep_interval: Duration = timedelta(seconds=15)
    database_patience: Duration = timedelta(minutes=15)
    """How long training goes on while Postgres is away."""
    max_retries: int = 3
    """Failed attempts that are forgiven; a shutdown costs none."""
    max_running_per_project: Annotated[int, Field(ge=1)] | None = None
    """Jobs that a project may have in training at once, in all queues together; None: as many as there are slots."""
    retry_delays: tuple[Duration, ...] = (timedelta(seconds=30), timedelta(minutes=2), timedelta(minutes=10))
    hang_timeout: Duration = timedelta(minutes=10)
    """For which a trainer may say nothing in its steps, if 20 of its own are not longer; in loading, six times that."""
    stop_grace: Duration = timedelta(seconds=30)
    """From TERM to KILL: the longest step and the time to save a checkpoint."""
    shutdown_grace: Duration = timedelta(seconds=8)
    """The same while the worker itself shuts down; `finetuned up` promises to end within 20 s."""
    checkpoint_grace: Duration = timedelta(minutes=5)
    """How long a paused or failed attempt waits for its last checkpoint to be stored, for whichever worker comes next.
    """
    foreign_memory_bytes: Annotated[int, Field(ge=0)] = 2 * 1024**3
    """Of a GPU's memory, in the hands of others, with which its slot still takes work; a desktop has some hundred MB.
    """
    scratch_retention: Duration = timedelta(days=1)
    """How long logs stay on the machine that trained, and checkpoints of cancelled jobs there and in the storage."""
    standby: bool = True
    """Keep one trainer started ahead, its imports done; without, it starts when files are being prepared."""

    webhook_allow: Networks = ()
    """Networks that webhooks may be sent to although they are not of the public internet."""
    webhook_timeout: Duration = timedelta(seconds=15)
    """From the connection to the answer."""
    webhook_retry_delays: tuple[Duration, ...] = (
        timedelta(seconds=5),
        timedelta(minutes=5),
        timedelta(minutes=30),
        timedelta(hours=2),
        timedelta(hours=5),
        timedelta(hours=10),
        timedelta(hours=14),
        timedelta(hours=20),
        timedelta(hours=24),
    )
    """After the first try, which is made at once; the table of the Standard Webhooks specification."""

    otlp_endpoint: str = Field(
        "", validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    """Where traces are sent, by OpenTelemetry's own variables; empty: nowhere."""

    fail_at: str | None = None
    """A failpoint for the fault tests: the process kills itself where this name stands."""

    @property
    def storage(self) -> str:
        """Where blobs and manifests lie."""
        return self.storage_url or f"file://{self.home.absolute() / 'storage'}"

    @property
    def models(self) -> Path:
        """The folder of local base models."""
        return (self.models_dir or self.home / "models").absolute()


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
