"""The catalogue on the screen."""

from __future__ import annotations

from typing import Any

from ..errors import SproutError
from .address import Kind
from .catalogue import as_dict, nearest, search, size_cell


def show(what: Kind, word: str | None, stage: str | None) -> list[dict[str, Any]]:
    """Print the entries that fit as a table and give them back; a ``SproutError`` where none does."""
    from rich.console import Console
    from rich.table import Table

    entries = search(word, stage, what)
    if not entries:
        near = nearest(word, what) if word is not None else []
        raise SproutError(
            f"{word or stage}: nothing in the catalogue has it; {'near are ' + ', '.join(near) if near else 'leave it out to see everything'}"
        )
    console = Console()
    chinese = _prefers_chinese()
    table = Table(box=None, pad_edge=False)
    last = "schema" if what == "data" else "architecture"
    for head in (
        "name",
        "for" if what == "data" else "parameters",
        "language",
        "size",
        "rows",
        "licence",
        last,
        "what",
    ):
        if not (what == "model" and head == "rows"):
            table.add_column(head, no_wrap=head == "name", overflow="fold")
    for entry in entries:
        licence = (entry.licence or "?") + (" †" if entry.gated else "")
        first = (entry.stage if what == "data" else entry.parameters) or "?"
        middle = [entry.rows or "?"] if what == "data" else []
        kind = (entry.format if what == "data" else entry.architecture) or "?"
        text = entry.zh if chinese else entry.en
        table.add_row(entry.name, first, entry.language, size_cell(entry), *middle, licence, kind, text)
    console.print(table)
    if any(entry.gated for entry in entries):
        console.print("† the hub asks for consent or a login first (HF_TOKEN)")
    console.print("? not known. Sizes are of what is fetched. Licences as the hub states them: read them before use.")
    console.print(
        f"fetch one:  {'sprout data download' if what == 'data' else 'sprout download model'} {entries[0].name}"
    )
    return [as_dict(entry) for entry in entries]


def _prefers_chinese() -> bool:
    import os

    language = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return language.lower().startswith("zh")
