"""Mix data sets by weight. Shares are of tokens, because tokens are what is trained on; without a tokenizer, of bytes.

A first pass weighs every row (five bytes each are kept). Then each source's rows are chosen: whole passes, and for the
rest a random part by the seed. The second pass writes them, all sources advancing evenly, each in its own order.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..fields import RowError
from ..sources import Counts, Row, no_records, to_record
from .convert import schema_writer
from .rows import Input, changed, leave_out, unwrapped
from .size import Weigh, bytes_of, token_counter
from .write import check_output, columns_for, writing

MISSING: Any = object()


@dataclass
class Part:
    """One source: its weight, the size of its rows, and how often each is taken."""

    given: Input
    weight: float
    sizes: array[int] = field(default_factory=lambda: array("I"))
    counts: Counts = field(default_factory=Counts)
    passes: int = 0  # whole ones
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # rows of the pass after those
    written: int = 0
    written_size: int = 0

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def planned(self) -> int:
        sizes = np.frombuffer(self.sizes, dtype=f"u{self.sizes.itemsize}")
        return self.passes * self.total + int(sizes[self.chosen].sum())


def mix(
    parts: Sequence[tuple[Input, float]],
    out: Path,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    megabytes: float | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    repeat: bool = True,
    to: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write rows of several sources, each by its weight, to ``out``; all in one schema (``to`` where they differ).

    At most one of ``rows``, ``tokens`` (needs ``tokenizer``) and ``megabytes`` says how much; without one, as much as
    there is before a source would repeat. A source that is too small repeats, which is said, or is refused (``repeat``).
    """
    _check(parts, rows, tokens, megabytes, tokenizer)
    check_output(out, [given.source.path for given, _ in parts], force)
    whole = sum(weight for _, weight in parts)
    mixed = [Part(given, weight / whole) for given, weight in parts]
    weigh, name = token_counter(tokenizer) if tokenizer is not None else (lambda row, record: bytes_of(row), None)
    reader = _Reader(mixed, to, weigh)
    columns = columns_for(out)
    for part in mixed:
        for value, size in reader.weighed(part):
            part.sizes.append(size)
            if columns is not None:
                columns.see(value)
        part.counts.check()
        if not part.total:
            raise no_records(part.given.source, part.counts.dropped, part.counts.examples)
    budget = tokens if tokens is not None else int(megabytes * 1_000_000) if megabytes is not None else None
    _plan(mixed, rows, budget, seed, repeat)
    with writing([out], columns) as (output,):
        for index, value, size in _interleaved(mixed, reader):
            try:
                output.write(value)
            except RowError as error:
                raise DataError(f"{mixed[index].given.source.path}: {error}") from None
            mixed[index].written += 1
            mixed[index].written_size += size
    return _report(mixed, out, seed, name, reader.schema, columns.said() if columns else [])


def _check(
    parts: Sequence[tuple[Input, float]],
    rows: int | None,
    tokens: int | None,
    megabytes: float | None,
    tokenizer: Path | None,
) -> None:
    named = [value for value in (rows, tokens, megabytes) if value is not None]
    if len(named) > 1:
        raise DataError("give one of --rows, --tokens and --mb: they all say how much is written")
    if any(not 0 < value < float("inf") for value in named):
        raise DataError(f"{named[0]}: the size of the mixture must be above 0")
    if tokens is not None and tokenizer is None:
        raise DataError("--tokens needs --tokenizer DIR to count them with")
    if len(parts) < 2:
        raise DataError("a mixture needs two sources or more, each with its weight: A.jsonl=0.7 B.jsonl=0.3")
    for given, weight in parts:
        if not 0 < weight < float("inf"):
            raise DataError(f"{given.source.path}={weight:g}: a weight must be above 0")


class _Reader:
    """Rows of the sources in one schema, with their size."""

    def __init__(self, parts: Sequence[Part], to: str | None, weigh: Weigh) -> None:
        self.doors = {id(part): part.given.door() for part in parts}
        self.weigh = weigh
        found = {door.format.name: part.given.source.path for part in parts for door in [self.doors[id(part)]]}
        if to is None and len(found) > 1:
            named = ", ".join(f"{path} is {name}" for name, path in found.items())
            raise DataError(
                f"the sources have different schemas ({named}), and a file should have one; add --to messages"
            )
        self.to_row = schema_writer(to) if to is not None else None
        self.schema = to or next(iter(found))

    def weighed(self, part: Part) -> Iterator[tuple[Any, int]]:
        """(value to write, its size) of every usable row, in order; each is counted."""
        for row, record in part.given.records(part.counts, "weighing", self.doors[id(part)]):
            try:
                value = row.value if self.to_row is None else self.to_row(record)
            except RowError as error:
                part.given.drop(row, error, part.counts)
                continue
            yield value, self.weigh(Row(row.path, row.line, value), record)

    def once_more(self, part: Part) -> Iterator[Any]:
        """The values of those rows again."""
        door = self.doors[id(part)]
        for row in part.given.again("mixing"):
            yield row.value if self.to_row is None else self.to_row(to_record(unwrapped(row), door))


# --- which rows ---------------------------------------------------------------------------------------------------------


def _plan(parts: Sequence[Part], rows: int | None, budget: int | None, seed: int, repeat: bool) -> None:
    """Decide how many whole passes of each source are written, and which rows of one more."""
    if rows is not None:
        # So many rows of each that their sizes stand in the ratio of the weights.
        share = np.array([part.weight * len(part.sizes) / part.total for part in parts])
        exact = share / share.sum() * rows
        wanted = np.floor(exact).astype(int)
        wanted[np.argsort(wanted - exact, kind="stable")[: rows - int(wanted.sum())]] += 1
        for number, (part, n) in enumerate(zip(parts, wanted.tolist(), strict=True)):
            part.passes, rest = divmod(n, len(part.sizes))
            part.chosen = _random_order(len(part.sizes), seed, number) < rest
    else:
        limit = min(part.total / part.weight for part in parts) if budget is None else float(budget)
        for number, part in enumerate(parts):
            passes, rest = divmod(limit * part.weight, part.total)
            if part.total - rest < 1e-6 * part.total:
                passes, rest = passes + 1, 0.0
            part.passes = int(passes)
            part.chosen = _up_to(part, rest, _random_order(len(part.sizes), seed, number))
    for part in parts:
        taken = part.passes * len(part.sizes) + int(part.chosen.sum())
        if taken > len(part.sizes) and not repeat:
            raise DataError(
                f"{part.given.source.path}: holds {len(part.sizes):,} rows, and its share needs {taken:,}; ask for less, lower its "
                "weight, or allow repeats"
            )
        if not taken:
            raise DataError(
                f"{part.given.source.path}: its share is less than a row; ask for more, or raise its weight"
            )


def _random_order(n: int, seed: int, source: int) -> np.ndarray:
    """Each row's rank in a random order of the rows; (n,) int64."""
    ranks = np.empty(n, dtype=np.int64)
    ranks[np.random.Generator(np.random.Philox([seed, source])).permutation(n)] = np.arange(n)
    return ranks


def _up_to(part: Part, size: float, ranks: np.ndarray) -> np.ndarray:
    """The rows of the lowest ranks whose sizes come nearest to ``size``; (rows,) bool."""
    sizes = np.frombuffer(part.sizes, dtype=f"u{part.sizes.itemsize}").astype(np.int64)
    order = np.argsort(ranks)
    sums = np.concatenate([[0], np.cumsum(sizes[order])])
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[: int(np.abs(sums - size).argmin())]] = True
    return chosen


def _interleaved(parts: Sequence[Part], reader: _Reader) -> Iterator[tuple[int, Any, int]]:
    """(source, value, size): always a row of the source that is furthest behind its plan."""
    streams = [_taken(part, reader) for part in parts]
    planned = [max(part.planned, 1) for part in parts]
    done = [0] * len(parts)
    open_ = set(range(len(parts)))
    while open_:
        index = min(open_, key=lambda i: (done[i] / planned[i], i))
        found = next(streams[index], None)
        if found is None:
            open_.remove(index)
            continue
        done[index] += found[1]
        yield index, *found


def _taken(part: Part, reader: _Reader) -> Iterator[tuple[Any, int]]:
    """The rows of a source that are written, pass after pass."""
    for number in range(part.passes + bool(part.chosen.any())):
        for place, (value, size) in enumerate(zip_longest(reader.once_more(part), part.sizes, fillvalue=MISSING)):
            if value is MISSING or size is MISSING:
                raise DataError(changed(part.given.source.path))
            if number < part.passes or part.chosen[place]:
                yield value, size


def _report(
    parts: Sequence[Part], out: Path, seed: int, tokenizer: str | None, schema: str, notes: list[str]
) -> dict[str, Any]:
    unit = "tokens" if tokenizer is not None else "bytes"
    total = sum(part.written_size for part in parts)
    counts, sources = Counts(), []
    for part in parts:
        n = len(part.sizes)
        used = n if part.passes else part.written
        leave_out(part.counts, n - used, "not chosen")
        part.counts.check()
        counts.merge(part.counts)
        path, repeats = part.given.source.path, part.written - used
        share = part.written_size / max(total, 1)
        sources.append({
            "path": path, "asked": part.weight, "share": share, unit: part.written_size, "rows": part.written,
            "rows_there": n, "repeats": repeats, "passes": part.written_size / part.total,
        })  # fmt: skip
        if repeats:
            times = part.written_size / part.total
            notes.append(
                f"{path}: too small for its share, so {repeats:,} of its rows are repeats ({times:.2f} passes over it)"
            )
        notes += part.given.said()
    twice = [path for path, times in Counter(found["path"] for found in sources).items() if times > 1]
    if twice:
        notes.append(f"named more than once, so that its rows are written once for each: {', '.join(map(str, twice))}")
    if tokenizer is None:
        notes.append("shares are of bytes; with --tokenizer DIR they are of tokens")
    return {
        "verb": "mix",
        "out": str(out),
        "seed": seed,
        "schema": schema,
        "unit": unit,
        "tokenizer": tokenizer,
        "total": total,
        "rows": sum(part.written for part in parts),
        "sources": sources,
        "counts": counts.as_dict(),
        "notes": notes,
    }
