"""How results and checkpoints are called: `ft:<base>:<project>:<suffix>:<id>`, and `:ckpt-step-<N>` behind it."""

import re

PREFIX = "ft:"
"""With which the names of registry models begin, and no base model's does."""
CHECKPOINT = re.compile(r":ckpt-step-\d+$")


def is_registered(model: str) -> bool:
    """Whether a model's name is one of the registry, and not a base's."""
    return model.startswith(PREFIX)


def of_result(model: str, project_name: str, suffix: str | None, *, job_id: str) -> str:
    """The name of what a job makes of a model: `<base>` is a base's last path part; an absent suffix keeps its colons.

    The result of a result begins with the same base, however many jobs lie between. The id is half of the job's, so
    that a checkpoint knows the name before there is a result.
    """
    base = _root_of(model).split("@", 1)[0].rsplit("/", 1)[-1]
    return f"{PREFIX}{base}:{slug(project_name)}:{slug(suffix or '')}:{job_id.rsplit('-', 1)[-1][:12]}"


def of_checkpoint(result: str, step: int) -> str:
    """A result's name as it was at a step."""
    return f"{result}:ckpt-step-{step}"


def slug(words: str) -> str:
    """Words as they may stand in a name: `[a-z0-9._-]`."""
    return re.sub(r"[^a-z0-9._-]+", "-", words.lower()).strip("-")


def _root_of(model: str) -> str:
    """The base that a name begins with: read from the end, because a base's own may have colons.

    It looks again because results of results were called `ft:ft:…` once.
    """
    while is_registered(model):
        model = CHECKPOINT.sub("", model).rsplit(":", 3)[0].removeprefix(PREFIX)
    return model
