"""Give every label as many rows: leave rows of the frequent ones out, or repeat those of the rare ones."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..fields import RowError, lookup
from ..sources import Counts, Row, no_records
from .rows import Input, leave_out
from .split import MOST_LABELS, label_of
from .write import check_output, columns_for, writing


def balance(
    given: Input, out: Path, to: str, *, by: str | None = None, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Write ``to`` rows of every label: ``min`` (as many as the rarest has), ``max`` (as the most frequent), or a number.

    Labels are those of the rows, or the values of the field ``by``. Rows are left out at random; when more are needed
    than there are, each is repeated as often as the others, give or take one, copies one after another. The order is
    the file's. Two passes; memory is three bytes a row.
    """
    check_output(out, [given.source.path], force)
    door = None if by is not None else given.door()

    def labelled(counts: Counts, what: str) -> Iterator[tuple[Row, str]]:
        pairs: Iterator[tuple[Row, Any]]
        pairs = ((row, None) for row in given.rows(counts, what)) if door is None else given.records(counts, what, door)
        for row, record in pairs:
            try:
                yield row, label_of(row, record) if by is None else _value(row, by)
            except RowError as error:
                given.drop(row, error, counts)

    first, names, labels = Counts(), {}, array("H")  # type: Counts, dict[str, int], array[int]
    columns = columns_for(out)
    for row, label in labelled(first, "counting labels"):
        if label not in names and len(names) >= MOST_LABELS:
            raise DataError(
                f"{row.where}: more than {MOST_LABELS:,} different labels; is {label[:40]!r} really a label?"
            )
        labels.append(names.setdefault(label, len(names)))
        if columns is not None:
            columns.see(row.value)
    first.check()
    if not names:
        raise no_records(given.source, first.dropped, first.examples)
    numbers = np.frombuffer(labels, dtype=np.uint16)
    sizes = np.bincount(numbers, minlength=len(names))
    wanted = _wanted(to, sizes)
    times = _times(numbers, sizes, wanted, seed)
    repeats = 0
    written: Counter[str] = Counter()
    label_names = list(names)
    with writing([out], columns) as (output,):
        for place, row in enumerate(given.again("balancing")):
            n = int(times[place])
            for _ in range(n):
                try:
                    output.write(row.value)
                except RowError as error:
                    raise DataError(f"{row.where}: {error}") from None
            written[label_names[labels[place]]] += n
            repeats += max(n - 1, 0)
        leave_out(first, int((times == 0).sum()), "left out to balance")
        first.check()
    notes = given.said() + (columns.said() if columns else [])
    if repeats:
        notes.append(
            f"{repeats:,} rows are repeats; part off test rows before balancing, or they will hold copies of trained ones"
        )
    return {
        "verb": "balance",
        "source": given.source.path,
        "out": str(out),
        "to": to,
        "seed": seed,
        "labels": {name: {"before": int(sizes[i]), "after": written[name]} for name, i in names.items()},
        "repeats": repeats,
        "counts": first.as_dict(),
        "notes": notes,
    }


def _value(row: Row, by: str) -> str:
    value = lookup(row.value, by, {})
    if isinstance(value, dict | list) or value is None:
        raise RowError(f"{by} is not a name or a number", reason=f"{by} is not a name or a number")
    return str(value)


def _wanted(to: str, sizes: np.ndarray) -> int:
    if to in ("min", "max"):
        return int(sizes.min() if to == "min" else sizes.max())
    if not to.isdecimal() or not int(to):
        raise DataError(f"--to {to}: give min, max or a number of rows for each label")
    return int(to)


def _times(numbers: np.ndarray, sizes: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """How often each row is written; (rows,) int64."""
    times = np.zeros(len(numbers), dtype=np.int64)
    for label in range(len(sizes)):
        mine = np.flatnonzero(numbers == label)
        whole, rest = divmod(wanted, len(mine))
        times[mine] = whole
        random = np.random.Generator(np.random.Philox([seed, label]))
        times[random.permutation(mine)[:rest]] += 1
    return times
