"""A row as it is cut out of its file, and how long one may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError

# Characters of one row; past this a missing quote or line end is likelier than a row. At 60 million characters, reading took
# 0.4 GB for one string and 0.6 GB for a list of numbers. A text is read as it stands: text8 is one line of 100 MB.
ROW_LIMIT = 1 << 26
TEXT_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as cut out of its file. ``fault`` says why it cannot be used, when that is known already."""

    path: Path
    line: int  # counts from 1; of parquet, the row's number
    payload: Any  # str, dict or list; an unparsed JSON document where ``is_json``
    is_json: bool = False
    fault: str | None = None
    reason: str = ""  # what such faults are counted under; "" leaves it to the reader of rows


def too_long(path: Path, line: int, cure: str, limit: int) -> DataError:
    """The error for a row past ``limit`` characters."""
    return DataError(f"{path}:{line}: one row of more than {limit:,} characters; {cure}")


def lines(stream: TextIO, limit: int) -> Iterator[tuple[int, str, int]]:
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
