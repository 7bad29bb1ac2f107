"""One reader per kind of file: each streams ``RawRow``s and holds one row (one batch for parquet) in memory.

Only the cheap part is done here: finding where a row begins and ends. Parsing JSON lines and making records of rows is
left to ``sources.parse_row`` and ``sources.to_record``, so that worker processes can do it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from . import raw_rows
from .files import Decoding, kind_of, known_suffixes, open_text, optional, reading
from .raw_rows import RawRow, lines, too_long
from .tables import has_known_name, read_table
from .typed_cells import PARQUET_JSON, PARQUET_KEY, WHOLE_ROW

__all__ = ["JsonStream", "RawRow", "read_file"]


def read_file(path: Path, encoding: str, split: str = "auto", named: frozenset[str] = frozenset()) -> Iterator[RawRow]:
    """Rows of one file. ``split`` is for text; ``named`` holds the columns the recipe names, which tell a header."""
    kind = kind_of(path)
    with reading(path, encoding):
        if kind == "parquet":
            yield from _parquet(path)
            return
        with open_text(path, encoding, newline="" if kind == "csv" else None) as stream:
            decoding = Decoding(path, encoding)
            if kind == "txt":
                yield from _text(path, stream, decoding, split)
            elif kind == "jsonl" or (kind == "json" and _holds_json_lines(path, encoding)):
                yield from _json_lines(path, stream, decoding)
            elif kind == "json":
                yield from _json_document(path, stream, decoding)
            elif kind in ("csv", "tsv"):
                yield from read_table(path, stream, decoding, kind == "tsv", named)
            else:
                raise DataError(f"{path}: the suffix {path.suffix!r} is not known; known are {known_suffixes()}")


# --- text -------------------------------------------------------------------------------------------------------------


def _text(path: Path, stream: TextIO, decoding: Decoding, split: str) -> Iterator[RawRow]:
    """Documents of a text file: parted by blank lines (auto, blank_line), one per line, or the whole file (none)."""
    held: list[str] = []
    size = first = 0
    for number, line, rest in lines(stream, raw_rows.TEXT_LIMIT):
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
        if size > raw_rows.TEXT_LIMIT:
            raise too_long(path, first, "if every line is a document, set columns: {split: line}", raw_rows.TEXT_LIMIT)
    if held:
        yield _document(path, first, held, decoding)


def _document(path: Path, line: int, lines: list[str], decoding: Decoding) -> RawRow:
    text = "".join(lines).rstrip("\n")
    return RawRow(path, line, text, fault=decoding.fault(text))


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_lines(path: Path, stream: TextIO, decoding: Decoding) -> Iterator[RawRow]:
    for number, line, rest in lines(stream, raw_rows.ROW_LIMIT):
        if rest:
            size = len(line) + rest
            fault = (
                f"a line of {size:,} characters, where {raw_rows.ROW_LIMIT:,} are read at most; is a line end missing?"
            )
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
        if not in_array and values.line >= line and values.at_end():
            _refuse_columns(path, value)
        if in_array and values.accept(","):
            if values.accept("]"):
                raise DataError(f"{path}:{values.line}: a comma before the end of the JSON array; take it away")
        elif in_array:
            if values.at_end():
                raise DataError(
                    f"{path}:{values.line}: the JSON array has no end; the file is cut short, fetch it again"
                )
            if not values.accept("]"):
                raise DataError(f"{path}:{values.line}: expected ',' or ']' after an element of the JSON array")
            if not values.at_end():
                raise DataError(f"{path}:{values.line}: text after the end of the JSON array; one array per file")
            return


def _refuse_columns(path: Path, value: Any) -> None:
    """Refuse a lone object that is a table by columns, as pandas writes one; read as a row, it would be one row."""
    if not isinstance(value, dict) or not has_known_name(list(value)):
        return
    columns = list(value.values())
    count = len(columns[0]) if isinstance(columns[0], list | dict) else 0
    if count < 2 or any(type(c) is not type(columns[0]) or len(c) != count for c in columns):
        return
    numbered = [str(i) for i in range(count)]
    plain = (isinstance(c, list) and not any(isinstance(x, list | dict) for x in c) for c in columns)
    if all(plain) or all(isinstance(c, dict) and list(c) == numbered for c in columns):
        raise DataError(
            f"{path}:1: one object with {count:,} values in each column, where rows were expected; write one object for "
            "each row (in pandas: to_json(PATH, orient='records', lines=True, force_ascii=False))"
        )


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
        if len(rest) > raw_rows.ROW_LIMIT:
            raise too_long(self._path, self.line, "is a quote or a bracket missing?", raw_rows.ROW_LIMIT)
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


# --- parquet ----------------------------------------------------------------------------------------------------------


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
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, told by ``reading``
            raise
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
