"""Take fields out of parsed rows: mapped and dotted columns, and errors that say what the row has instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from ..errors import DataError

_REQUIRED: Any = object()


class RowError(DataError):
    """A row that cannot be made a record: a sentence, and a short reason to count it under."""

    def __init__(self, sentence: str, reason: str = "bad row") -> None:
        super().__init__(sentence)
        self.reason = reason


class EmptyRow(RowError):
    """A row with nothing in it to learn: dropped and counted under every policy, never an error."""

    def __init__(self, sentence: str = "the row is empty", reason: str = "empty") -> None:
        super().__init__(sentence, reason)


def lookup(value: Any, field: str, columns: dict[str, str], default: Any = _REQUIRED) -> Any:
    """The value of a field. ``columns`` may map it to another column or to a dotted path such as ``text.prompt``."""
    path = columns.get(field, field)
    if not isinstance(value, dict):
        raise RowError(f"the row is {a_kind(value)}, not an object with {path!r}", reason="row is not an object")
    if path in value:
        return value[path]
    if default is not _REQUIRED and "." not in path:
        return default
    found: Any = value
    for step in path.split("."):
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif default is not _REQUIRED:
            return default
        else:
            raise RowError(_missing(value, path, field), reason=f"missing {path}")
    return found


def _missing(value: dict[str, Any], path: str, field: str) -> str:
    names = [str(name) for name in value]
    near = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
    hint = f"; set columns: {{{field}: {near[0]}}}" if near else f"; name the right one with columns: {{{field}: NAME}}"
    return f"there is no {path!r}; the row has {', '.join(names) or 'nothing'}{hint}"


def column_of(value: Any, names: Sequence[str], columns: dict[str, str]) -> str:
    """Which of several names for a field this row uses: a mapped one first, then one that is there, else the first."""
    for name in names:
        if name in columns:
            return name
    return next((name for name in names if isinstance(value, dict) and name in value), names[0])


def string_at(value: Any, field: str, columns: dict[str, str]) -> str:
    """A field that must be a string. Null raises ``EmptyRow``; anything else ``RowError``, with the cure."""
    return _string(lookup(value, field, columns), field, columns.get(field, field))


def optional_string(value: Any, field: str, columns: dict[str, str]) -> str:
    """A field that may be absent or null, which gives the empty string."""
    required = _REQUIRED if field in columns else None
    found = lookup(value, field, columns, default=required)
    return "" if found is None else _string(found, field, columns.get(field, field))


def _string(found: Any, field: str, path: str) -> str:
    if isinstance(found, str):
        return encodable(found, path)
    if found is None:
        raise EmptyRow(f"{path} is null")
    reason = f"{path} is not a string"
    if isinstance(found, dict) and found:
        strings = [key for key, inner in found.items() if isinstance(inner, str)]
        key = strings[0] if strings else next(iter(found))
        keys = ", ".join(str(k) for k in found)
        cure = f"set columns: {{{field}: {path}.{key}}} to take one of them"
        raise RowError(f"{path} is an object with the keys {keys}, not a string; {cure}", reason=reason)
    raise RowError(f"{path} is {a_kind(found)}, not a string", reason=reason)


def encodable(text: str, what: str) -> str:
    """``text`` unless it holds half of a surrogate pair (a broken \\u escape), which no tokenizer can encode."""
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise RowError(
            f"{what} holds half a surrogate pair ({half}), which is no character", reason="half a surrogate pair"
        ) from None
    return text


def a_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, int | float):
        return f"a number ({value})"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", tuple: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")
