"""One reader per kind of file: each streams ``RawRow``s and holds one row (one batch for parquet) in memory.

Only the cheap part is done here: finding where a row begins and ends. Parsing JSON lines and making records of rows is
left to ``sources.parse_row`` and ``sources.to_record``, so that worker processes can do it.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from .files import Decoding, kind_of, known_suffixes, open_text, optional, reading
from .typed_cells import PARQUET_JSON, PARQUET_KEY, WHOLE_ROW, TypedHeader

# Characters of one row; past this a missing quote or line end is likelier than a row. At 60 million characters, reading took
# 0.4 GB for one string and 0.6 GB for a list of numbers. A text is read as it stands: text8 is one line of 100 MB.
ROW_LIMIT = 1 << 26
TEXT_LIMIT = 1 << 28
HEADER_PROBE = 20  # rows compared with the first one to tell a header from data
_HEADER_CELL = re.compile(r"[^\W\d][\w.\-/#()]*(?: [\w.\-/#()]+){0,2}")
_HEADER_NAMES = frozenset(
    "text label instruction input output prompt completion question answer messages conversations chosen rejected "
    "content review sentence title id response system".split()
)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as cut out of its file. ``fault`` says why it cannot be used, when that is known already."""

    path: Path
    line: int  # counts from 1; of parquet, the row's number
    payload: Any  # str, dict or list; an unparsed JSON document where ``is_json``
    is_json: bool = False
    fault: str | None = None
    reason: str = ""  # what such faults are counted under; "" leaves it to the reader of rows


def read_file(path: Path, encoding: str, split: str = "auto", named: frozenset[str] = frozenset()) -> Iterator[RawRow]:
    """Rows of one file. ``split`` is for text; ``named`` holds the columns the recipe names, which tell a header."""
    kind = kind_of(path)
    with reading(path, encoding):
        if kind == "parquet":
            yield from _parquet(path)
            return
        with open_text(path, encoding) as stream:
            decoding = Decoding(path, encoding)
            if kind == "txt":
                yield from _text(path, stream, decoding, split)
            elif kind == "jsonl" or (kind == "json" and _holds_json_lines(path, encoding)):
                yield from _json_lines(path, stream, decoding)
            elif kind == "json":
                yield from _json_document(path, stream, decoding)
            elif kind in ("csv", "tsv"):
                yield from _table(path, stream, decoding, kind == "tsv", named)
            else:
                raise DataError(f"{path}: the suffix {path.suffix!r} is not known; known are {known_suffixes()}")


def _too_long(path: Path, line: int, cure: str, limit: int) -> DataError:
    return DataError(f"{path}:{line}: one row of more than {limit:,} characters; {cure}")


def _lines(stream: TextIO, limit: int) -> Iterator[tuple[int, str, int]]:
    """(number, line, rest) of each line. Of one past ``limit`` characters, the beginning; ``rest`` counts what is left out."""
    number = 0
    while line := stream.readline(limit):
        number += 1
        rest = 0
        if len(line) == limit and line[-1] != "\n":
            piece = stream.readline(1 << 20)
            while piece:
                rest += len(piece)
                piece = "" if piece[-1] == "\n" else stream.readline(1 << 20)
        yield number, line, rest


# --- text -------------------------------------------------------------------------------------------------------------


def _text(path: Path, stream: TextIO, decoding: Decoding, split: str) -> Iterator[RawRow]:
    """Documents of a text file: parted by blank lines (auto, blank_line), one per line, or the whole file (none)."""
    held: list[str] = []
    size = first = 0
    for number, line, rest in _lines(stream, TEXT_LIMIT):
        blank = not line.strip()
        if held and (split == "line" or (blank and split != "none")):
            yield _document(path, first, held, decoding)
            held, size = [], 0
        if blank and not (held and split == "none"):
            continue
        if not held:
            first = number
        held.append(line)
        size += len(line) + rest
        if size > TEXT_LIMIT:
            raise _too_long(path, first, "if every line is a document, set columns: {split: line}", TEXT_LIMIT)
    if held:
        yield _document(path, first, held, decoding)


def _document(path: Path, line: int, lines: list[str], decoding: Decoding) -> RawRow:
    text = "".join(lines).rstrip("\n")
    return RawRow(path, line, text, fault=decoding.fault(text))


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_lines(path: Path, stream: TextIO, decoding: Decoding) -> Iterator[RawRow]:
    for number, line, rest in _lines(stream, ROW_LIMIT):
        if rest:
            size = len(line) + rest
            fault = f"a line of {size:,} characters, where {ROW_LIMIT:,} are read at most; is a line end missing?"
            yield RawRow(path, number, "", is_json=True, fault=fault, reason="line too long")
            continue
        line = line.strip()
        if line:
            yield RawRow(path, number, line, is_json=True, fault=decoding.fault(line))


def _holds_json_lines(path: Path, encoding: str) -> bool:
    """Whether a .json file is really one JSON value per line, as many are: its first line is whole, and more follows."""
    with open_text(path, encoding) as stream:
        first = "\n"
        while first == "\n":
            first = stream.readline(1 << 20)
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return False
        return any(piece.strip() for piece in iter(lambda: stream.readline(1 << 16), ""))


def _json_document(path: Path, stream: TextIO, decoding: Decoding) -> Iterator[RawRow]:
    """Elements of a JSON array, or JSON values one after another, without ever holding the whole file."""
    values = JsonStream(path, stream)
    in_array = values.accept("[")
    if in_array and values.accept("]"):
        return
    while in_array or not values.at_end():
        line, source, value = values.next_value()
        yield RawRow(path, line, value, fault=decoding.fault(source))
        if in_array and not values.accept(","):
            if values.at_end():
                raise DataError(
                    f"{path}:{values.line}: the JSON array has no end; the file is cut short, fetch it again"
                )
            if not values.accept("]"):
                raise DataError(f"{path}:{values.line}: expected ',' or ']' after an element of the JSON array")
            if not values.at_end():
                raise DataError(f"{path}:{values.line}: text after the end of the JSON array; one array per file")
            return


class JsonStream:
    """Takes JSON values off a text stream through a buffer that grows no larger than about twice the value at hand."""

    def __init__(self, path: Path, stream: TextIO, chunk: int = 1 << 16) -> None:
        self._path, self._stream, self._chunk = path, stream, chunk
        self._decoder = json.JSONDecoder()
        self._buffer, self._position, self._ended = "", 0, False
        self.line = 1

    def at_end(self) -> bool:
        """Skip white space; True when nothing follows."""
        while True:
            size = len(self._buffer)
            while self._position < size and self._buffer[self._position] in " \t\n\r":
                self.line += self._buffer[self._position] == "\n"
                self._position += 1
            if self._position < size:
                return False
            if self._ended:
                return True
            self._fill()

    def accept(self, mark: str) -> bool:
        """Step over ``mark`` if it is what comes next."""
        if self.at_end() or self._buffer[self._position] != mark:
            return False
        self._position += 1
        return True

    def next_value(self) -> tuple[int, str, Any]:
        """(line, source text, value) of the next value. Raises ``DataError`` at broken JSON: no later row can be trusted."""
        self.at_end()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                if not self._ended and _may_be_cut(error, len(self._buffer)):
                    self._fill()
                    continue
                raise DataError(self._broken(error)) from None
            if len(self._buffer) - end < 3 and not self._ended:  # a number could go on, as 1 does in 1e-7
                self._fill()
                continue
            line, source = self.line, self._buffer[self._position : end]
            self.line += source.count("\n")
            self._position = end
            return line, source, value

    def _fill(self) -> None:
        rest = self._buffer[self._position :]
        if len(rest) > ROW_LIMIT:
            raise _too_long(self._path, self.line, "is a quote or a bracket missing?", ROW_LIMIT)
        # As much again as is held: re-reading a long value from its start then costs linear time in all.
        more = self._stream.read(max(self._chunk, len(rest)))
        self._ended = not more
        self._buffer, self._position = rest + more, 0

    def _broken(self, error: Exception) -> str:
        line, what = self.line, str(error)
        if isinstance(error, json.JSONDecodeError):
            line += self._buffer.count("\n", self._position, error.pos)
            what = error.msg
        return f"{self._path}:{line}: broken JSON ({what}); nothing after it can be read, repair the file"


def _may_be_cut(error: Exception, size: int) -> bool:
    """Whether more text could mend a JSON error: an open string, or a fault within a literal's reach of the end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= size - 16


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(path: Path, stream: TextIO, decoding: Decoding, tabs: bool, named: frozenset[str]) -> Iterator[RawRow]:
    rows = _tsv_cells(stream) if tabs else _csv_cells(path, stream)
    probe = list(itertools.islice(rows, HEADER_PROBE + 1))
    if not probe:
        return
    first = probe[0][1]
    has_header = _is_header(first, [cells for _, cells, _ in probe[1:]], named)
    header = [name.strip() for name in first] if has_header else [f"column_{i}" for i in range(1, len(first) + 1)]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are called {twice!r}, and one would be lost; rename one of them")
    typed = TypedHeader.of(header) if has_header else None
    for line, cells, fault in itertools.chain(probe[has_header:], rows):
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _csv_cells(path: Path, stream: TextIO) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, cells, fault) of each row of a .csv; quoted cells may hold commas and line ends."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB would refuse a long document

    size, start = 0, 1

    def lines() -> Iterator[str]:
        nonlocal size
        for _, line, rest in _lines(stream, ROW_LIMIT):
            size += len(line) + rest
            if size > ROW_LIMIT:
                raise _too_long(path, start, "is a closing quote missing?", ROW_LIMIT)
            yield line

    reader = csv.reader(lines(), strict=True)
    while True:
        size, start = 0, reader.line_num + 1
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


def _tsv_cells(stream: TextIO) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, cells, fault) of each row of a .tsv: a line is a row, whatever quotes it holds.

    Read as csv, one message that begins with a quote would swallow all rows up to the next one. Cells in which every
    inner quote is doubled were written by a csv writer, and lose their quotes.
    """
    for number, line, rest in _lines(stream, ROW_LIMIT):
        if rest:
            fault = f"a line of {len(line) + rest:,} characters, where {ROW_LIMIT:,} are read at most"
            yield number, [], f"{fault}; is a line end missing?"
            continue
        line = line.rstrip("\n")
        if line:
            yield number, [_unquote(cell) for cell in line.split("\t")], None


def _unquote(cell: str) -> str:
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
    return _has_known_name(names) or (looks_like_header(names) and not repeated)


def _has_known_name(names: list[str]) -> bool:
    return any(name.lower() in _HEADER_NAMES for name in names)


def looks_like_header(names: list[str]) -> bool:
    """Whether column names tell by themselves that they are no data, as long as no cell repeats its column's name."""
    rest = names[1:] if names and names[0] == "" else names  # pandas leaves its index column nameless
    looks = all(len(name) <= 40 and _HEADER_CELL.fullmatch(name) for name in rest)
    return bool(rest) and len(set(names)) == len(names) and (looks or _has_known_name(names))


def _parquet(path: Path) -> Iterator[RawRow]:
    parquet = optional("pyarrow.parquet", path)
    arrow = optional("pyarrow", path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            is_json = [f.name for f in file.schema_arrow if (f.metadata or {}).get(PARQUET_KEY) == PARQUET_JSON]
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    try:
                        yield RawRow(path, number, _restored(value, is_json))
                    except (ValueError, RecursionError) as error:
                        yield RawRow(path, number, value, fault=f"a cell that should hold JSON does not ({error})")
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); fetch it again") from None


def _restored(value: dict[str, Any], is_json: list[str]) -> Any:
    """A row of parquet with its JSON columns parsed; see ``typed_cells``."""
    if not is_json:
        return value
    if value.get(WHOLE_ROW) is not None and WHOLE_ROW in is_json:
        return json.loads(value[WHOLE_ROW])
    found = {}
    for name, cell in value.items():
        if name not in is_json:
            found[name] = cell
        elif cell is not None:
            found[name] = json.loads(cell)
    return found
