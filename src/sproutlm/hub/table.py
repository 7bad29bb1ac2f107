"""The catalogue on the screen."""

from __future__ import annotations

import os
from typing import Any

from ..errors import SproutError
from .address import Kind
from .catalogue import Entry, as_dict, nearest, search, size_cell


def show(what: Kind, word: str | None, stage: str | None) -> list[dict[str, Any]]:
    """Print the entries that fit, two lines each, and give them back; a ``SproutError`` where none does."""
    entries = search(word, stage, what)
    if not entries:
        near = nearest(word, what) if word is not None else []
        hint = f"near are {', '.join(near)}" if near else "leave it out to see everything"
        raise SproutError(f"{word or stage}: nothing in the catalogue has it; {hint}")
    heads = ("name", "for" if what == "data" else "parameters", "language", "size", "rows", "licence")
    rows = [heads[: 4 + 2 * (what == "data")] + heads[5:] * (what == "model"), *(_cells(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    chinese = _prefers_chinese()
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number:
            entry = entries[number - 1]
            print(f"    {entry.zh if chinese else entry.en}; {_kind(entry)}")
    if any(entry.gated for entry in entries):
        print("† the hub asks for consent or a login first (HF_TOKEN)")
    print("? not known. Sizes are of what is fetched. Licences are the hub's words: read them before use.")
    print(f"fetch one:  {entries[0].verb}")
    return [as_dict(entry) for entry in entries]


def _cells(entry: Entry) -> tuple[str, ...]:
    licence = (entry.licence or "?") + (" †" if entry.gated else "")
    if entry.what == "model":
        return entry.name, entry.parameters or "?", entry.language, size_cell(entry), licence
    return entry.name, entry.stage or "?", entry.language, size_cell(entry), entry.rows or "?", licence


def _kind(entry: Entry) -> str:
    if entry.what == "model":
        return f"architecture {entry.architecture or '?'}"
    return f"schema {entry.format}" if entry.format else "questions"


def _prefers_chinese() -> bool:
    language = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return language.lower().startswith("zh")
