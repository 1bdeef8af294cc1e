"""Files that are fetched rather than uploaded: `hf://datasets/…` and `s3://…`, as far as the operator allows them."""

import re
from typing import Any

from app.errors import InvalidRequest
from app.settings import get_settings

SCHEMES = ("hf", "s3")
_PLAIN = re.compile(r"(hf|s3)://[\w.@=+-]+(/[\w.@=+ -]+)*/?")
"""No `..`, no percent signs and no query: what is compared with a prefix is what is opened."""


def require_allowed(source: str) -> None:
    """Raises `InvalidRequest` for an address that is none, or that the operator has not allowed."""
    if not _PLAIN.fullmatch(source) or ".." in source:
        raise InvalidRequest(
            "A source is an address such as hf://datasets/org/name/file.jsonl or s3://bucket/folder/file.jsonl.",
            param="source",
        )
    allowed = prefixes()
    if not any(f"{source}/".startswith(prefix) for prefix in allowed):
        offered = f"allows {', '.join(allowed)}" if allowed else "allows none"
        raise InvalidRequest(
            f"This server {offered}: its operator lists sources in FINETUNED_FILE_SOURCES. Upload the file instead.",
            param="source",
            code="source_not_allowed",
        )


def prefixes() -> list[str]:
    """What sources may begin with; each ends with a slash, so that a bucket's name is no beginning of another's."""
    given = [one.strip() for one in get_settings().file_sources.split(",")]
    known = [one for one in given if one.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))]
    return [one if one.endswith("/") else f"{one}/" for one in known]


def options(source: str) -> dict[str, Any]:
    """What fsspec is told beside the address: tokens, keys, endpoints, which never come from a client."""
    return dict(get_settings().source_options.get(source.partition("://")[0], {}))
