"""``{{name}}`` in rows: filled from the recipe's ``fill``, or counted, so that nobody trains one without knowing."""

from __future__ import annotations

import re
from typing import Any

from .fields import RowError

_PLACEHOLDER = re.compile(r"\{\{[ \t]*([^\W\d]\w*)[ \t]*\}\}")


def filled(value: Any, fill: dict[str, str], used: set[str]) -> Any:
    """``value`` with every ``{{name}}`` (blanks inside do not matter) of ``fill`` replaced; ``used`` gets their names."""

    def text_for(found: re.Match[str]) -> str:
        if found[1] not in fill:
            return found[0]
        used.add(found[1])
        return fill[found[1]]

    def inside(value: Any) -> Any:
        if isinstance(value, str):
            return _PLACEHOLDER.sub(text_for, value) if "{{" in value else value
        if isinstance(value, dict):
            return {key: inside(inner) for key, inner in value.items()}
        return [inside(inner) for inner in value] if isinstance(value, list) else value

    try:
        return inside(value)
    except RecursionError:
        raise RowError("the row is nested too deeply to fill; take it out", reason="nested too deeply") from None


def placeholder_in(value: Any) -> str | None:
    """The first placeholder that stands in any string of ``value``, as it is written there."""
    if isinstance(value, str):
        found = _PLACEHOLDER.search(value) if "{{" in value else None
        return found[0] if found else None
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            if type(inner) is str and "{{" not in inner:  # nearly every one; asked for every row
                continue
            name = placeholder_in(inner)
            if name:
                return name
    return None
