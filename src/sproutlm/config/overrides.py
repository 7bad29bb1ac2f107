"""``key=value`` on the command line: dotted keys, list items by number, a pipeline's stages also by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .document import Document, Key, Problem, Where, dotted, parse


def override(document: Document, text: str, cwd: Path) -> list[Problem]:
    """Put one ``key=value`` into ``document``; the value is read as YAML. Relative paths in it begin at ``cwd``."""
    label = f"command line: {text}"
    where = Where(label, 0, cwd)
    name, equals, value_text = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        return [Problem(where, "", "not of the form key=value, such as train.steps=500")]
    try:
        value = parse(value_text, label, cwd, command_line=True)
    except RecipeError as error:
        return [Problem(where, "", problem.removeprefix(f"{label}: ")) for problem in error.problems]
    key: Key = ()
    for part in parts[:-1]:
        step = _step(document.get(key), part)
        if isinstance(step, _Refusal):
            return [Problem(where, dotted(key), step.reason)]
        key = (*key, step)
        section = document.get(key[:-1])
        if isinstance(section, dict) and section.get(str(step)) is None:
            document.put(key, {}, {(): where})
    step = _step(document.get(key), parts[-1])
    if isinstance(step, _Refusal):
        return [Problem(where, dotted(key), step.reason)]
    document.put((*key, step), value.data, value.places)
    return []


class _Refusal:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _step(section: Any, part: str) -> str | int | _Refusal:
    """``part`` as a key of ``section``: a name in a mapping, an existing item's number (or its name) in a list."""
    if isinstance(section, dict):
        return part
    if not isinstance(section, list):
        return _Refusal(f"is a single value, so it has no {part!r} below it")
    names = [item.get("name") if isinstance(item, dict) else None for item in section]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(section):
        return int(part)
    known = ", ".join(str(name) for name in names if name)
    return _Refusal(
        f"has no item {part!r}; there are {len(section)}, counted from 0"
        + (f", and their names are {known}" if known else "")
    )
