"""Tables as text: .csv as spreadsheets and programs write it, .tsv with a row on each line; with and without a header."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from . import raw_rows
from .files import Decoding
from .raw_rows import RawRow, lines, too_long
from .typed_cells import TypedHeader

HEADER_PROBE = 20  # rows compared with the first one to tell a header from data
_HEADER_CELL = re.compile(r"[^\W\d][\w.\-/#()]*(?: [\w.\-/#()]+){0,2}")
_HEADER_NAMES = frozenset(
    "text label instruction input output prompt completion question answer messages conversations chosen rejected "
    "content review sentence title id response system".split()
)


def read_table(path: Path, stream: TextIO, decoding: Decoding, tabs: bool, named: frozenset[str]) -> Iterator[RawRow]:
    """Rows of a table as objects, under the names of its header, or ``column_1``, ``column_2``, ... where it has none."""
    rows = _tsv_cells(stream) if tabs else _csv_cells(path, stream, named)
    probe = list(itertools.islice(rows, HEADER_PROBE + 1))
    if not probe:
        return
    first = probe[0][1]
    if tabs and len(first) == 1 and "," in first[0] and _names_columns(first[0].split(","), first[0], named):
        raise DataError(f"{path}:1: the columns are parted by commas, where tabs were expected; name the file .csv")
    spare = _nameless(first)
    has_header = _is_header(first[: len(first) - spare], [cells for _, cells, _ in probe[1:]], named)
    if spare and has_header:
        first = first[: len(first) - spare]
    header = [name.strip() for name in first] if has_header else [f"column_{i}" for i in range(1, len(first) + 1)]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are called {twice!r}, and one would be lost; rename one of them")
    typed = TypedHeader.of(header) if has_header else None
    for line, cells, fault in itertools.chain(probe[has_header:], rows):
        if spare and has_header and not any(cells[len(header) :]):
            cells = cells[: len(header)]
        if fault is None and len(cells) != len(header):
            fault = f"{_count(len(cells), 'cell')} where {len(header)} were expected ({', '.join(header)})"
        fault = fault or decoding.fault("\n".join(cells))
        value: Any = dict(zip(header, cells, strict=False))
        if typed is not None and fault is None:
            try:
                value = typed.row(cells)
            except ValueError as error:
                fault = str(error)
        yield RawRow(path, line, value, fault=fault)


def _nameless(names: list[str]) -> int:
    """How many columns at the end have no name: a spreadsheet writes them where cells were once used. One may be data."""
    spare = sum(1 for _ in itertools.takewhile(lambda name: not name.strip(), reversed(names)))
    return spare if 1 < spare < len(names) else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _csv_cells(path: Path, stream: TextIO, named: frozenset[str]) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, cells, fault) of each row of a .csv; quoted cells may hold commas and line ends, which stay as they are."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB would refuse a long document

    cut = lines(stream, raw_rows.ROW_LIMIT)
    first = next(cut, None)
    if first is None:
        return
    mark, skipped = _separator(first[1].rstrip("\r\n"), named)
    size, start = 0, 1 + skipped

    def csv_lines() -> Iterator[str]:
        nonlocal size
        for _, line, rest in cut if skipped else itertools.chain([first], cut):
            size += len(line) + rest
            if size > raw_rows.ROW_LIMIT:
                raise too_long(path, start, "is a closing quote missing?", raw_rows.ROW_LIMIT)
            yield line

    reader = csv.reader(csv_lines(), strict=True, delimiter=mark)
    while True:
        size, start = 0, reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(
                    f"{path}:{start}: a quote that opens here is never closed; close it or double it"
                ) from None
            yield start, [], f"not csv ({error})"
            continue
        if cells:
            yield start, cells, None


def _separator(line: str, named: frozenset[str]) -> tuple[str, bool]:
    """What parts the cells of a .csv, and whether its first line only says so, as Excel's ``sep=;`` does.

    Another mark than a comma is taken where the first line has no comma and names columns when parted by it.
    """
    if len(line) == 5 and line.lower().startswith("sep="):
        return line[4], True
    for mark in ";\t":
        if mark in line and "," not in line and len(line) < 1000:
            if _names_columns(next(csv.reader([line], delimiter=mark)), line, named):
                return mark, False
    return ",", False


def _names_columns(cells: list[str], line: str, named: frozenset[str]) -> bool:
    names = [cell.strip() for cell in cells]
    typed = TypedHeader.of([line]) is not None  # our own tables have commas, or tabs in a .tsv
    return len(names) > 1 and not typed and (any(name in named for name in names) or looks_like_header(names))


def _tsv_cells(stream: TextIO) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, cells, fault) of each row of a .tsv: a line is a row, whatever quotes it holds.

    Read as csv, one message that begins with a quote would swallow all rows up to the next one. Cells in which every
    inner quote is doubled were written by a csv writer, and lose their quotes.
    """
    for number, line, rest in lines(stream, raw_rows.ROW_LIMIT):
        if rest:
            fault = f"a line of {len(line) + rest:,} characters, where {raw_rows.ROW_LIMIT:,} are read at most"
            yield number, [], f"{fault}; is a line end missing?"
            continue
        line = line.rstrip("\n")
        if line:
            yield number, [unquoted(cell) for cell in line.split("\t")], None


def unquoted(cell: str) -> str:
    inner = cell[1:-1]
    if len(cell) > 3 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _is_header(first: list[str], others: list[list[str]], named: frozenset[str]) -> bool:
    """Whether a table's first row names its columns: by a name the recipe or a format knows, or by its looks."""
    names = [cell.strip() for cell in first]
    if any(re.fullmatch(r"column_\d+", name) for name in named - set(names)):
        return False
    if any(name in named for name in names) or TypedHeader.of(names) is not None:
        return True
    repeated = any(name == cell.strip() for row in others for name, cell in zip(names, row, strict=False) if name)
    return has_known_name(names) or (looks_like_header(names) and not repeated)


def has_known_name(names: list[str]) -> bool:
    return any(name.lower() in _HEADER_NAMES for name in names)


def looks_like_header(names: list[str]) -> bool:
    """Whether column names tell by themselves that they are no data, as long as no cell repeats its column's name."""
    rest = names[1:] if names and names[0] == "" else names  # pandas leaves its index column nameless
    looks = all(len(name) <= 40 and _HEADER_CELL.fullmatch(name) for name in rest)
    return bool(rest) and len(set(names)) == len(names) and (looks or has_known_name(names))
