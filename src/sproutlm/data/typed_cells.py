"""Tables that keep types. A column that a plain table could not give back holds JSON in every cell; its header says so.

``label:json``       every cell is a JSON value; an empty cell means that the row has no such key
``"odd name":json``  the same, with the name written as JSON, because a plain one would not survive
``:json``            the whole row, for rows that are no objects or whose keys stand in another order; their other cells are empty

Columns whose every cell is a plain string are written as in any table. In parquet such a column is one of strings,
marked in its field's metadata; a null cell means that the row has no such key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARK = ":json"
WHOLE_ROW = MARK  # the header of the column that holds whole rows
PARQUET_KEY, PARQUET_JSON = b"sproutlm", b"json"  # metadata of a parquet field whose strings are JSON


def dumps(value: Any) -> str:
    """JSON on one line, readable; with escapes only where the text holds half a surrogate pair, which UTF-8 cannot."""
    text = json.dumps(value, ensure_ascii=False)
    return text if encodable(text) else json.dumps(value)


def encodable(text: str) -> bool:
    """Whether UTF-8 can write ``text``."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plain_name(name: str) -> bool:
    """Whether a column's name comes back from a table as it went in."""
    odd = name != name.strip() or name.endswith(MARK) or "\ufeff" in name or any(mark in name for mark in '\t\n\r"')
    return not odd and encodable(name)


def json_header(name: str) -> str:
    """The header cell of a JSON column."""
    return f"{name if name and plain_name(name) else json.dumps(name)}{MARK}"


@dataclass(frozen=True, slots=True)
class TypedHeader:
    """The header of a table with JSON columns: ``None`` in ``names`` stands for the column of whole rows."""

    names: tuple[str | None, ...]
    is_json: tuple[bool, ...]

    @classmethod
    def of(cls, cells: Sequence[str]) -> TypedHeader | None:
        """Read a header; None when it names no JSON column, so that the table is like any other."""
        stripped = [cell.strip() for cell in cells]
        if not any(cell.endswith(MARK) for cell in stripped):
            return None
        marked = [cell.endswith(MARK) for cell in stripped]
        return cls(tuple(_name(cell) if m else cell for cell, m in zip(stripped, marked, strict=True)), tuple(marked))

    def row(self, cells: Sequence[str]) -> Any:
        """The value that was written. Raises ``ValueError`` with the part of a sentence when a cell is not JSON."""
        value: dict[str, Any] = {}
        for name, is_json, cell in zip(self.names, self.is_json, cells, strict=True):
            if not is_json:
                value[str(name)] = cell
            elif cell:
                try:
                    found = json.loads(cell)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"the cell of {name or ''}{MARK} is not JSON ({error})") from None
                if name is None:
                    return found
                value[name] = found
        return value


def _name(cell: str) -> str | None:
    name = cell.removesuffix(MARK)
    if not name:
        return None
    if name.startswith('"') and name.endswith('"'):
        try:
            return str(json.loads(name))
        except ValueError:
            pass
    return name
