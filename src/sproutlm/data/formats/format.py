"""What a format is: a schema of rows, how it is told, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..fields import RowError
from ..records import Record


@dataclass(frozen=True, slots=True)
class Format:
    """One schema of rows. ``parse`` raises ``RowError`` with a sentence; ``columns`` maps field names to columns.

    ``to_row`` gives a record back as a row of this schema, ``parse(to_row(record), {}) == record``, and raises
    ``RowError`` that names what the schema cannot hold; None where rows are only read.
    """

    name: str
    matches: Callable[[Any], bool]
    parse: Callable[[Any, dict[str, str]], Record]
    describe: str = ""  # what it needs, for messages
    fields: tuple[str, ...] = ()  # names that ``columns`` may map; empty = any
    needs: tuple[tuple[str, ...], ...] = ()  # what a row must have; names in one tuple stand for each other
    to_row: Callable[[Record], Any] | None = None
    writes: tuple[str, ...] = ()  # keys that ``to_row`` may give, in their order; the later ones only where they apply


def lossless(
    name: str, write: Callable[[Record], dict[str, Any]], parse: Callable[[Any, dict[str, str]], Record]
) -> Callable[[Record], dict[str, Any]]:
    """``write``, refusing whatever would not be read back as the same record."""

    def to_row(record: Record) -> dict[str, Any]:
        row = write(record)
        try:
            same = parse(row, {}) == record
        except RowError as error:
            raise RowError(f"{name} cannot hold this record: {error}", reason=f"{name} cannot hold it") from None
        if not same:
            said = f"{name} cannot hold this record: its texts would be read back otherwise than they are"
            raise RowError(said, reason=f"{name} cannot hold it")
        return row

    return to_row
