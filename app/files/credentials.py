"""What looks like a key or a password in a text: by the marks that issuers give theirs, and by what it is assigned to.

The marks are those of the issuers' documentation, as the well-known scanners use them too (gitleaks, detect-secrets).
Scanners read folders, and take a process or milliseconds a text; a row has microseconds.
"""

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

SHOWN = 4
"""Characters of a key that a finding may quote: of most kinds its issuer's mark, never enough to use."""
MIN_ENTROPY = 3.0
"""Bits a character, of an assigned value; words have less, and random strings of 12 characters more."""


class Credential(NamedTuple):
    """The first of a kind in a text."""

    kind: str
    message: str
    """What is wrong and what to do, to be read after the name of the field. Never quotes what was found."""


def find(text: str) -> Iterator[Credential]:
    """One of each kind. Fast for the usual text, which has none."""
    seen = False
    for kind in _KINDS:
        if kind.mark in text and (match := _first(kind, text)):
            seen = True
            yield Credential(
                kind.name,
                f"has what looks like {kind.name} ({match[0][:SHOWN]}…). Remove it, and revoke it if it is real:"
                " a model can learn it by heart.",
            )
    # A key of a known kind is mostly assigned to something, and is not said twice.
    if not seen and _assigned(text):
        yield Credential(
            "a password",
            "has what looks like a password or a key, assigned to a name that says so. Remove it, and change it if it"
            " is real: a model can learn it by heart.",
        )


def _first(kind: "_Kind", text: str) -> re.Match[str] | None:
    matches = kind.pattern.finditer(text)
    return next((match for match in matches if not _made_up(match[kind.secret]) and kind.holds(match)), None)


_MADE_UP = re.compile(
    r"example|sample|placeholder|your|change.?me|dummy|fake|redacted|xxxx|\*\*\*|\.\.\.|123456|abcdef|(.)\1{5}",
    re.IGNORECASE,
)


def _made_up(value: str) -> bool:
    """Whether it stands for a key, as documentation's do."""
    return _MADE_UP.search(value) is not None


def _mixed(match: re.Match[str]) -> bool:
    """Digits and letters: a name written with hyphens has the same characters, but no digits."""
    return any(map(str.isdigit, match[0])) and _entropy(match[0]) > MIN_ENTROPY


def _entropy(value: str) -> float:
    """Shannon's, in bits a character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def _is_web_token(match: re.Match[str]) -> bool:
    """Whether its first part is the JSON header of RFC 7519."""
    header = match[0].split(".")[0]
    try:
        decoded = msgspec.json.decode(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(decoded, dict) and "alg" in decoded


def _logs_in(match: re.Match[str]) -> bool:
    """Whether user and password differ; where they are one word it is documentation's, or a default."""
    return match["user"] != match["password"] and not _NAMES.search(match["password"].lower())


class _Kind(NamedTuple):
    name: str
    mark: str
    """Is in each text that has one: to look for a string is ten times faster than for a pattern."""
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], object] = bool
    secret: int | str = 0
    """The group that must not be made up."""


_KINDS = (
    _Kind(
        "a private key",
        "PRIVATE KEY",
        re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----((?:\\n|\\r|[A-Za-z0-9+/=\s]){64})"),
        secret=1,
    ),
    _Kind("an AWS access key", "IA", re.compile(r"\bA[KS]IA[A-Z2-7]{16}\b")),
    _Kind(
        "a GitHub token",
        "_",
        re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    ),
    _Kind("a GitLab token", "glpat-", re.compile(r"\bglpat-[\w-]{20,}"), _mixed),
    _Kind("a Slack token", "xox", re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}"), _mixed),
    _Kind(
        "a Slack webhook",
        "hooks.slack.com",
        re.compile(r"hooks\.slack\.com/services/(T\w{6,}/B\w{6,}/\w{20,})"),
        secret=1,
    ),
    _Kind("a Stripe key", "k_", re.compile(r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"), _mixed),
    _Kind("an Anthropic key", "sk-ant-", re.compile(r"\bsk-ant-[\w-]{24,}"), _mixed),
    _Kind("an OpenAI key", "sk-", re.compile(r"(?<![\w-])sk-(?!ant-)(?:[a-z]+-)?[\w-]{32,}"), _mixed),
    _Kind("a Google key", "AIza", re.compile(r"\bAIza[\w-]{35}(?![\w-])")),
    _Kind("a Hugging Face token", "hf_", re.compile(r"\bhf_[A-Za-z0-9]{34,}\b")),
    _Kind("a JSON web token", "eyJ", re.compile(r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"), _is_web_token),
    _Kind(
        "an address with a password",
        "://",
        re.compile(
            r"\b[a-z][a-z0-9+.-]{1,20}://(?P<user>[^\s/:@<>{}$\"'`]{1,64})"
            r":(?P<password>[^\s/:@<>{}$\"'`]{6,128})@\w"
        ),
        _logs_in,
        secret="password",  # noqa: S106  the group's name
    ),
)

_NAMES = re.compile("passw|pwd|secret|token|key")
_ASSIGNED = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|(?:access|secret|auth|private)[_-]?key)"
    r"""\\?["'`]?[ \t]{0,3}(?::=|=>|=|:)[ \t]{0,3}\\?["'`]?([^\s"'`<>{}()\[\]$,;\\]{8,128})(?=[\s"'`,;\\]|$)""",
)
_CODE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+[.:]?")


def _assigned(text: str) -> bool:
    lower = text.lower()
    # Five strings are found faster than one pattern of them.
    if not ("passw" in lower or "pwd" in lower or "secret" in lower or "token" in lower or "key" in lower):
        return False
    return any(
        # Where lower case has another length, which few letters' has, its own places are not the text's.
        _is_password(text[match.start(1) : match.end(1)] if len(lower) == len(text) else match[1])
        for match in _ASSIGNED.finditer(lower)
    )


def _is_password(value: str) -> bool:
    """No word, no placeholder, no name of code such as `config1.password`: with digits and letters, in no order."""
    return (
        any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and "://" not in value
        and not _made_up(value)
        and not _NAMES.search(value.lower())
        and not _CODE.fullmatch(value)
        and _entropy(value) >= MIN_ENTROPY
    )
