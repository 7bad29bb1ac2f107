"""Give every label as many rows: leave rows of the frequent ones out, or repeat those of the rare ones."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..fields import RowError
from ..sources import Counts, Row, no_records
from ..typed_cells import dumps
from .rows import Input, leave_out, value_of
from .split import MOST_LABELS, label_of
from .write import check_output, columns_for, writing

MOST_ROWS = 1 << 30


def balance(
    given: Input, out: Path, to: str, *, by: str | None = None, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Write ``to`` rows of every label: ``min`` (as many as the rarest has), ``max`` (as the most frequent), or a number.

    Labels are those of the rows, or the values of the field ``by``. Rows are left out at random; when more are needed
    than there are, each is repeated as often as the others, give or take one, its copies spread evenly over the file.
    Every row stands where it stood. Two passes, three where rows are repeated; memory is three bytes a row and 24 for
    each repeat, whatever the rows hold.
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
    repeats = int(np.maximum(times - 1, 0).sum())
    written = np.zeros(len(names), dtype=np.int64)
    np.add.at(written, numbers, times)
    with writing([out], columns) as (output,):
        try:
            for value in _placed(given, times, out.parent):
                output.write(value)
        except RowError as error:
            raise DataError(f"{out}: {error}") from None
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
        "labels": {name: {"before": int(sizes[i]), "after": int(written[i])} for name, i in names.items()},
        "repeats": repeats,
        "counts": first.as_dict(),
        "notes": notes,
    }


def _value(row: Row, by: str) -> str:
    value = value_of(row, by)
    if isinstance(value, dict | list) or value is None:
        raise RowError(f"{by} is not a name or a number", reason=f"{by} is not a name or a number")
    return str(value)


def _wanted(to: str, sizes: np.ndarray) -> int:
    if to in ("min", "max"):
        return int(sizes.min() if to == "min" else sizes.max())
    if not to.isdecimal() or not int(to):
        raise DataError(f"--to {to}: give min, max or a number of rows for each label")
    if int(to) * len(sizes) > MOST_ROWS:
        raise DataError(f"--to {to}: would write {int(to) * len(sizes):,} rows; at most {MOST_ROWS:,} are written")
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


def _placed(given: Input, times: np.ndarray, folder: Path) -> Iterator[Any]:
    """The rows to write, in order: each one at its place, and its copies evenly over the whole file.

    Copies next to each other would come in one batch, which learns them by heart. Rows that are repeated are kept in a
    nameless file in ``folder``, because a copy may stand before its row does.
    """
    repeated = np.flatnonzero(times > 1)
    copies = times[repeated] - 1
    which = np.repeat(np.arange(len(repeated)), copies)  # (repeats,) into ``repeated``
    number = np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies) + 1  # 1, 2, ... of each row
    at = (repeated[which] + number * (len(times) / times[repeated][which])) % len(times)
    order = np.argsort(at, kind="stable")
    due = np.searchsorted(at[order], np.arange(len(times) + 1), side="right")  # copies that stand before each place
    due[-1] = len(order)
    with tempfile.TemporaryFile(dir=folder) as kept:
        starts = array("Q", [0])
        if len(repeated):
            for place, row in enumerate(given.again("keeping rows to repeat")):
                if times[place] > 1:
                    kept.write(dumps(row.value).encode("utf-8"))
                    starts.append(kept.tell())

        def copies_between(begin: int, end: int) -> Iterator[Any]:
            for copy in order[begin:end].tolist():
                start, stop = starts[which[copy]], starts[which[copy] + 1]
                kept.seek(start)
                yield json.loads(kept.read(stop - start))

        done = 0
        for place, row in enumerate(given.again("balancing")):
            yield from copies_between(done, done := int(due[place]))
            if times[place]:
                yield row.value
        yield from copies_between(done, len(order))
