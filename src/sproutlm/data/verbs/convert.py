"""Rows from one container to another, as they are or in another schema. What cannot be kept is refused or said, never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..fields import RowError
from ..files import kind_of
from ..formats import FORMATS, resolve_format
from ..records import Record
from ..sources import Counts, Door, Row, no_records
from .rows import Input, unchanged
from .write import check_output, columns_for, writing

Values = Callable[[Counts, str], Iterator[tuple[Row, Any]]]


def convert(given: Input, out: Path, to: str | None = None, force: bool = False) -> dict[str, Any]:
    """Write every row of ``given`` to ``out``; with ``to``, in that schema.

    Tables and parquet take two passes: the first learns the columns. Memory is one row, whatever the file's size.
    Raises ``DataError`` at a row that cannot be read or held, unless ``given.on_bad_row`` is ``skip``.
    """
    check_output(out, [given.source.path], force)
    reshape = Reshape(given, to or ("text" if _takes_texts(given, out) else None))
    values = reshape.values
    columns = columns_for(out)
    learned = Counts()
    if columns is not None:
        for _, value in values(learned, "looking at columns"):
            columns.see(value)
        learned.check()
        if not learned.records_out:
            raise no_records(given.source, learned.dropped, learned.examples)
        reshape.left_out.clear()
    counts = Counts()
    with writing([out], columns) as (output,):
        for row, value in values(counts, "converting"):
            try:
                output.write(value)
            except RowError as error:
                given.drop(row, error, counts)
        counts.check()
        if not counts.records_out:
            raise no_records(given.source, counts.dropped, counts.examples)
        if columns is not None:
            unchanged(learned, counts, given.source.path)
    notes = [*given.said(), *reshape.said(), *(columns.said() if columns else [])]
    return {
        "verb": "convert",
        "source": given.source.path,
        "out": str(out),
        "from": reshape.door.format.name if reshape.door else "rows as they are",
        "to": to or "rows as they are",
        "counts": counts.as_dict(),
        "notes": notes,
    }


def _takes_texts(given: Input, out: Path) -> bool:
    """Whether texts are taken out of the rows: into a .txt, where columns say which."""
    return kind_of(out) == "txt" and "text" in given.source.columns


class Reshape:
    """Rows as they are (``to`` None), or as a schema's rows made through their records."""

    def __init__(self, given: Input, to: str | None) -> None:
        self.given = given
        self.left_out: Counter[str] = Counter()  # keys that the new rows lack -> rows
        self.door: Door | None = None
        self.to = to
        self.to_row: Callable[[Record], Any] | None = None
        if to is not None:
            self.door, self.to_row = given.door(), schema_writer(to)

    def values(self, counts: Counts, what: str) -> Iterator[tuple[Row, Any]]:
        """Each row with the value to write for it. Rows that cannot be made one are counted, or raise."""
        if self.door is None or self.to_row is None:
            for row in self.given.rows(counts, what):
                yield row, row.value
            return
        read = _read_columns(self.door)
        for row, record in self.given.records(counts, what, self.door):
            try:
                value = self.to_row(record)
            except RowError as error:
                self.given.drop(row, error, counts)
                continue
            if read and isinstance(row.value, dict):
                kept = [item for item in value.values() if isinstance(item, str)] if isinstance(value, dict) else []
                for name, item in row.value.items():  # a text may have been found under any name
                    if name not in read and item not in kept:
                        self.left_out[name] += 1
            yield row, value

    def said(self) -> list[str]:
        """What was left out, one sentence each."""
        return [
            f"left out, for {self.to} rows have no place for it: {name} ({rows:,} rows)"
            for name, rows in sorted(self.left_out.items())
        ]


def schema_writer(to: str) -> Callable[[Record], Any]:
    """What writes a record as a row of the schema ``to``; ``DataError`` when there is none."""
    to_row = resolve_format(to, [], {}).to_row
    if to_row is None:
        written = ", ".join(known.name for known in FORMATS if known.to_row is not None)
        raise DataError(f"--to {to}: rows of this schema cannot be written; choose among {written}")
    return to_row


def _read_columns(door: Door) -> set[str]:
    """Top-level columns that the format reads; none when only the format knows."""
    fields = {name for known in FORMATS for name in known.fields} if door.spec == "mixed" else set(door.format.fields)
    mapped = {path for column in door.columns.values() for path in (column, column.split(".")[0])}
    return mapped | (fields - door.columns.keys()) if fields else set()
