"""What a model of the hub is before anything of it is downloaded: its `config.json`."""

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds for which the hub is waited for: a caller is."""


def config_of(model: str, *, ask: bool) -> dict[str, Any] | None:
    """The `config.json` of `org/name` or `org/name@revision`; None where it cannot be had.

    The copy on this machine's disk, as a job or an earlier question left it there; where there is none and the hub may
    be asked, that of the hub, by this process's own `HF_TOKEN`.
    """
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = model.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    if not isinstance(found, str):
        found = _fetched(name, revision or None) if ask else None
    return _read(Path(found)) if found is not None else None


def _fetched(name: str, revision: str | None) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Once: where it gets no answer and has no copy, a download asks five more times, for 24 s.
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=PATIENCE)
        return hf_hub_download(name, "config.json", revision=revision, etag_timeout=PATIENCE)
    except Exception as error:  # noqa: BLE001  of a library that raises another's errors; without it nothing is known
        log.info("no config.json of '%s' from the hub: %s", name, error)
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
