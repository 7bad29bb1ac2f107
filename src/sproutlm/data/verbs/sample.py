"""Take a random part of a data set in one pass: so many rows, tokens or megabytes.

Every row gets a random number from the seed and its place; the rows with the smallest numbers are kept. That is the
beginning of a random order of all rows, so each row has the same chance. Memory holds the sample, never the rest.
"""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..fields import RowError
from ..sources import Counts, no_records
from ..typed_cells import dumps
from .rows import Input, hash64, leave_out
from .size import bytes_of, token_counter
from .write import check_output, columns_for, writing


def sample(
    given: Input,
    out: Path,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    megabytes: float | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write a random part of ``given`` in the order of the file. Exactly one of ``rows``, ``tokens``, ``megabytes`` is given.

    ``rows`` is kept exactly; the others to within one row: the row at the edge is kept where that is nearer. A million
    bytes make a megabyte, of rows as JSON lines. One pass.
    """
    asked = {"rows": rows, "tokens": tokens, "mb": megabytes}
    named = {name: value for name, value in asked.items() if value is not None}
    if len(named) != 1:
        raise DataError("a sample needs one size: --rows N, --tokens N with --tokenizer DIR, or --mb X")
    (unit, size) = next(iter(named.items()))
    if not 0 < size < float("inf"):
        raise DataError(f"--{unit} {size}: must be above 0")
    if (tokens is not None) != (tokenizer is not None):
        raise DataError("--tokens and --tokenizer DIR go together: tokens are counted with a tokenizer")
    check_output(out, [given.source.path], force)
    limit = int(size * 1_000_000) if unit == "mb" else int(size)
    if not limit:
        raise DataError(f"--{unit} {size}: is less than a byte; ask for more")
    counts = Counts()
    held = Reservoir(limit)
    if tokenizer is not None:
        count, name = token_counter(tokenizer)
        for number, (row, record) in enumerate(given.records(counts, "sampling", given.door())):
            held.offer(hash64(str(number), seed), number, row.value, count(row, record))
    else:
        name = None
        for number, row in enumerate(given.rows(counts, "sampling")):
            held.offer(hash64(str(number), seed), number, row.value, 1 if unit == "rows" else bytes_of(row))
    kept, total, seen = held.finish()
    if not kept:
        raise no_records(given.source, counts.dropped, counts.examples)
    columns = columns_for(out)
    if columns is not None:
        for text in kept:
            columns.see(json.loads(text))
    with writing([out], columns) as (output,):
        for text in kept:
            try:
                output.write(json.loads(text))
            except RowError as error:
                raise DataError(f"{out}: {error}") from None
        leave_out(counts, held.rows_seen - len(kept), "not sampled")
        counts.check()
    notes = [*given.said(), *(columns.said() if columns else [])]
    if seen < limit:
        notes.append(f"there is less than was asked for: all {len(kept):,} rows were taken")
    return {
        "verb": "sample",
        "source": given.source.path,
        "out": str(out),
        "seed": seed,
        "asked": {unit: size},
        "taken": {"rows": len(kept), **({} if unit == "rows" else {"bytes" if unit == "mb" else unit: total})},
        "tokenizer": name,
        "counts": counts.as_dict(),
        "notes": notes,
    }


class Reservoir:
    """The rows with the smallest numbers whose sizes together reach ``limit``; rows are kept as JSON text."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = self.seen = self.rows_seen = 0
        self._heap: list[
            tuple[int, int, int, str]
        ] = []  # (-random number, place, size, row): the largest number on top

    def offer(self, random: int, place: int, value: Any, size: int) -> None:
        """Keep a row if it belongs to the sample so far, and let go what no longer does."""
        self.rows_seen += 1
        self.seen += size
        if self.total >= self.limit and random >= -self._heap[0][0]:
            return
        heapq.heappush(self._heap, (-random, place, size, dumps(value)))
        self.total += size
        while self.total - self._heap[0][2] >= self.limit:
            self.total -= heapq.heappop(self._heap)[2]

    def finish(self) -> tuple[list[str], int, int]:
        """(rows in the order of the file, their size, the size of all rows); without the row at the edge if that is nearer."""
        if self._heap and len(self._heap) > 1:
            edge = self._heap[0][2]
            if abs(self.total - edge - self.limit) < abs(self.total - self.limit):
                self.total -= heapq.heappop(self._heap)[2]
        kept = [text for _, _, _, text in sorted(self._heap, key=lambda item: item[1])]
        return kept, self.total, self.seen
