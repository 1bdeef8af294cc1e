"""`{{item.x}}` and `{{sample.output_text}}` in a grader's texts: paths, and no code.

A path is a namespace, a name, and further names and indexes: `{{item.answers[0].text}}`. A text is put in as it is,
anything else as JSON. `sample.output_json` is there when the sample is JSON.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from app.graders.failures import NotGraded

MAX_CHARACTERS = 100_000
"""Of a text, as written and again as filled in."""
MAX_PATH = 256
_PATH = re.compile(r"(?P<namespace>\w+)(?P<steps>(?:\.[\w-]+|\[[0-9]{1,6}\])*)")
_STEP = re.compile(r"\.(?P<name>[\w-]+)|\[(?P<index>[0-9]+)\]")


class BadTemplate(ValueError):
    """A text that no sample could fill in."""


def check(template: str) -> None:
    """Raises `BadTemplate`, with what is wrong."""
    for _, path in _parts(template):
        if path is not None:
            _steps(path)


def fill(template: str, *, item: Mapping[str, Any], sample: str) -> str:
    """The text with its variables put in. Raises `NotGraded` for one that is not there."""
    filled, length = [], 0
    answer = _Sample(sample)
    for literal, path in _parts(template):
        for part in (literal, "" if path is None else _value(path, item=item, sample=answer)):
            length += len(part)
            if length > MAX_CHARACTERS:
                raise NotGraded(f"A text is filled in to more than {MAX_CHARACTERS} characters.", "other_error")
            filled.append(part)
    return "".join(filled)


def item_paths(template: str) -> Iterator[str]:
    """What a checked text reads of an item, without the namespace: `answers[0].text`."""
    for _, path in _parts(template):
        if path is not None and _steps(path)[0] == "item":
            yield path.removeprefix("item.")


def has(item: Mapping[str, Any], path: str) -> bool:
    """Whether there is something at one of the `item_paths`."""
    try:
        _value(f"item.{path}", item=item, sample=_Sample(""))
    except NotGraded:
        return False
    return True


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    """The text between variables, each with the path that follows it; a `}}` that ends none is text."""
    start = 0
    while (opening := template.find("{{", start)) >= 0:
        closing = template.find("}}", opening)
        if closing < 0:
            raise BadTemplate("A '{{' is not closed by '}}'.")
        yield template[start:opening], template[opening + 2 : closing].strip()
        start = closing + 2
    yield template[start:], None


def _steps(path: str) -> tuple[str, list[str | int]]:
    """The namespace, and the names and indexes behind it. Raises `BadTemplate`."""
    match = _PATH.fullmatch(path) if len(path) <= MAX_PATH else None
    if match is None:
        raise BadTemplate(f"'{{{{{path[:60]}}}}}' is no variable. Write one as {{{{item.x}}}}, {{{{item.x[0].y}}}}.")
    namespace = match["namespace"]
    if namespace not in ("item", "sample"):
        raise BadTemplate(f"Unknown namespace '{namespace[:60]}': there are 'item' and 'sample'.")
    steps = [step["name"] or int(step["index"]) for step in _STEP.finditer(match["steps"])]
    if not steps or isinstance(steps[0], int):
        raise BadTemplate(f"'{{{{{path[:60]}}}}}' names no variable of '{namespace}': write {{{{{namespace}.name}}}}.")
    if namespace == "sample" and steps != ["output_text"] and steps[0] != "output_json":
        raise BadTemplate("Of 'sample' there are {{sample.output_text}}, {{sample.output_json}} and paths into it.")
    return namespace, steps


class _Sample:
    """Parsed when a path first asks for it, and not again for each of the thousands that may follow."""

    def __init__(self, text: str) -> None:
        self.output_text = text

    @cached_property
    def output_json(self) -> Any:
        """Raises `NotGraded`."""
        try:
            return json.loads(self.output_text)
        except (ValueError, RecursionError) as error:
            raise NotGraded(
                "The sample is no JSON, so there is no 'sample.output_json'.",
                "sample_parse_error",
                "invalid_variable_error",
            ) from error


def _value(path: str, *, item: Mapping[str, Any], sample: _Sample) -> str:
    namespace, steps = _steps(path)
    found: Any = item
    if namespace == "sample":
        found = sample.output_text if steps.pop(0) == "output_text" else sample.output_json
    try:
        for step in steps:
            found = _child(found, step)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except (LookupError, RecursionError) as error:
        raise NotGraded(f"There is no '{path}' to fill in.", "invalid_variable_error") from error


def _child(parent: Any, step: str | int) -> Any:
    match parent, step:
        case dict(), str() as name:
            return parent[name]
        case list(), int() as index:
            return parent[index]
        case _:
            raise LookupError(step)
