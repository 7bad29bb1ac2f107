"""What a table needs to know of all rows before its first one is written: columns, their order, and which can be plain.

A first pass shows every row to ``see``; memory is a few names and types. Rows that a table's columns cannot give back
(no object, keys in another order, more than a thousand keys) are written whole, into a column of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from ..tables import looks_like_header, unquoted
from ..typed_cells import WHOLE_ROW, dumps, encodable, json_header, plain_name

MOST_COLUMNS = 1000
DEEPEST = 30  # nested types beyond are kept as JSON
Shape = tuple[Any, ...]  # ("str",), ("list", shape), ("struct", ((name, shape), ...)), ("mixed",)
MIXED, NULL = ("mixed",), ("null",)


@dataclass
class Column:
    """One column, from the rows seen so far."""

    seen: int = 0
    plain: bool = True  # every cell is a string that a table gives back
    empty: bool = False
    shape: Shape = NULL


class Columns:
    """Columns of ``kind`` (csv, tsv, parquet) from a first pass over the rows."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.order: list[str] = []
        self.whole = False  # some rows are written whole
        self._columns: dict[str, Column] = {}
        self._rows = 0  # that are written into the columns
        self._known: dict[tuple[str, ...], bool] = {}  # key sequences -> whether they stand in order

    def see(self, value: Any) -> None:
        """Take one row of the first pass into account."""
        if not (isinstance(value, dict) and value and self._merge(tuple(value))):
            self.whole = True
            return
        self._rows += 1
        for name, cell in value.items():
            column = self._columns[name]
            column.seen += 1
            if self.kind == "parquet":
                if column.shape != MIXED:
                    column.shape = merged(column.shape, shape_of(cell))
            elif column.plain:
                column.plain = self._is_plain(name, cell)
                column.empty = column.empty or cell == ""

    def _merge(self, keys: tuple[str, ...]) -> bool:
        """Put new keys behind the one they follow. False when these keys stand in another order than the columns."""
        known = self._known.get(keys)
        if known is not None:
            return known
        old = [self.order.index(key) for key in keys if key in self._columns]
        fits = old == sorted(old) and len(self.order) + len(keys) - len(old) <= MOST_COLUMNS
        fits = fits and WHOLE_ROW not in keys and all(encodable(key) for key in keys)
        if fits:
            at = 0
            for key in keys:
                if key not in self._columns:
                    self.order.insert(at, key)
                    self._columns[key] = Column()
                at = self.order.index(key) + 1
        if len(self._known) < 10_000:  # inserting keeps the order of what was there, so the answer stays true
            self._known[keys] = fits
        return fits

    def _is_plain(self, name: str, cell: Any) -> bool:
        # A cell that repeats its column's name would make the header look like data.
        if not isinstance(cell, str) or "\r" in cell or cell.strip() == name.strip() or not encodable(cell):
            return False
        return self.kind == "csv" or not ("\t" in cell or "\n" in cell or unquoted(cell) != cell)

    # --- after the first pass ---------------------------------------------------------------------------------------

    def fits(self, value: Any) -> bool:
        """Whether a row goes into the columns; else it is written whole."""
        known = isinstance(value, dict) and bool(value) and self._columns.keys() >= value.keys()
        fits = known and self._merge(tuple(value))
        if not fits and not self.whole:
            raise DataError("the file changed while it was read; run the same command again")
        return fits

    def json_columns(self) -> set[str]:
        """Names of the columns whose cells are JSON."""
        if self.kind == "parquet":
            return {n for n, c in self._columns.items() if c.shape == MIXED or c.seen < self._rows}
        found = {n for n, c in self._columns.items() if not c.plain or c.seen < self._rows or not plain_name(n)}
        if self.kind == "tsv" and len(self.order) == 1 and not self.whole and self._columns[self.order[0]].empty:
            found.add(self.order[0])  # a line with nothing on it is no row
        if self.order and not found and not self.whole and not looks_like_header(self.order):
            found.add(self.order[0])  # the mark makes it a header
        return found

    def shape(self, name: str) -> Shape:
        return self._columns[name].shape

    def header(self) -> list[str]:
        """Header cells of a table."""
        found = self.json_columns()
        cells = [json_header(name) if name in found else name for name in self.order]
        return [*cells, WHOLE_ROW] if self.whole else cells

    def cells(self, value: Any, json_columns: set[str]) -> list[str]:
        """The cells of one row of a table, under ``header``."""
        if not self.fits(value):
            return [""] * len(self.order) + [dumps(value)]
        cells = [
            "" if name not in value else dumps(value[name]) if name in json_columns else value[name]
            for name in self.order
        ]
        return [*cells, ""] if self.whole else cells

    def said(self) -> list[str]:
        """What a person should know about the form of the file, one sentence each."""
        lines = []
        found = sorted(self.json_columns(), key=self.order.index)
        if found:
            names = ", ".join(found[:8]) + (" …" if len(found) > 8 else "")
            lines.append(f"columns that hold JSON, to keep types and missing keys: {names}")
        if self.whole:
            lines.append(f"rows without these keys in this order are written whole, in the column {WHOLE_ROW}")
        return lines


# --- types ------------------------------------------------------------------------------------------------------------


def shape_of(value: Any, depth: int = 0) -> Shape:
    """The parquet type of a JSON value, ``MIXED`` when parquet could not give it back as it is."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return ("bool",)
    if isinstance(value, int):
        return ("int",) if -(1 << 63) <= value < 1 << 63 else MIXED
    if isinstance(value, float):
        return ("float",)
    if isinstance(value, str):
        return ("str",) if encodable(value) else MIXED
    if depth >= DEEPEST:
        return MIXED
    if isinstance(value, list):
        inner = NULL
        for item in value:
            inner = merged(inner, shape_of(item, depth + 1))
            if inner == MIXED:
                return MIXED
        return ("list", inner)
    if isinstance(value, dict) and value:
        parts = tuple((name, shape_of(item, depth + 1)) for name, item in value.items())
        broken = any(shape == MIXED or not encodable(name) for name, shape in parts)
        return MIXED if broken else ("struct", parts)
    return MIXED


def merged(one: Shape, other: Shape) -> Shape:
    """The type that holds values of both, ``MIXED`` when there is none that keeps them apart."""
    if one == other or other == NULL:
        return one
    if one == NULL:
        return other
    if one[0] == other[0] == "list":
        inner = merged(one[1], other[1])
        return MIXED if inner == MIXED else ("list", inner)
    if one[0] == other[0] == "struct" and [n for n, _ in one[1]] == [n for n, _ in other[1]]:
        parts = tuple((name, merged(a, b)) for (name, a), (_, b) in zip(one[1], other[1], strict=True))
        return MIXED if any(shape == MIXED for _, shape in parts) else ("struct", parts)
    return MIXED


def arrow_type(shape: Shape) -> Any:
    """The pyarrow type of a shape."""
    import pyarrow

    if shape[0] == "list":
        return pyarrow.list_(arrow_type(shape[1]))
    if shape[0] == "struct":
        return pyarrow.struct([(name, arrow_type(inner)) for name, inner in shape[1]])
    plain = {"bool": pyarrow.bool_, "int": pyarrow.int64, "float": pyarrow.float64}
    return plain.get(shape[0], pyarrow.string)()
