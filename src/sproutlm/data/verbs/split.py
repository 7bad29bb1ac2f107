"""Part a data set for training and testing: exact shares, labels in proportion, and nothing in two parts at once.

Rows with the same content (see ``content_of``), or with the same value of a field, form a group, and a group is never
parted. The first pass keeps a 64-bit hash per row (and a label's number); which part a group falls into follows from its
hash and the seed, so that the order of the rows does not matter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..fields import RowError, lookup
from ..records import Labelled
from ..sources import Counts, Door, Row, no_records
from .rows import Input, content_of, hash64, json_key, value_of
from .write import check_output, columns_for, writing

MOST_LABELS = 10_000
NAMES = {1: ("all",), 2: ("train", "test"), 3: ("train", "validation", "test")}


@dataclass
class Learned:
    """What the first pass keeps of every row: its group, and its label's number."""

    groups: array[int] = field(default_factory=lambda: array("Q"))
    labels: array[int] = field(default_factory=lambda: array("H"))
    names: dict[str, int] = field(default_factory=dict)


def split(
    given: Input,
    outs: Sequence[Path],
    shares: Sequence[float],
    *,
    seed: int = 0,
    stratify: bool = False,
    by: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write each row to one of ``outs``, by ``shares``. ``by`` names the field whose equal values stay together.

    With ``stratify`` each label's rows are parted by the same shares, to a row. Two passes; memory is 9 bytes a row (11
    with labels), and about 60 for a moment while the parts are decided.
    """
    exact = fractions(shares, len(outs))
    if len({out.resolve() for out in outs}) < len(outs):
        raise DataError(f"{outs[0]}: two parts have the same name; name each part once")
    for out in outs:
        check_output(out, [given.source.path], force)
    rows = _Rows(given, by, stratify)
    columns = columns_for(next((out for out in outs if columns_for(out)), outs[0]))
    first, learned = Counts(), Learned()
    for row, group, label in rows.read(first, "looking for equal rows", seed):
        learned.groups.append(group)
        if stratify:
            learned.labels.append(_number(label, learned.names, given.source.path))
        if columns is not None:
            columns.see(row.value)
    first.check()
    if not first.records_out:
        raise no_records(given.source, first.dropped, first.examples)
    parts, found = assign(learned, exact, outs)
    with writing(outs, columns) as outputs:
        for number, row in enumerate(given.again("writing the parts")):
            try:
                outputs[parts[number]].write(row.value)
            except RowError as error:
                given.drop(row, error, first)
        first.check()
        written = [output.rows for output in outputs]
    notes = [*given.said(), *rows.said(), *found.pop("notes"), *(columns.said() if columns else [])]
    return {
        "verb": "split",
        "source": given.source.path,
        "seed": seed,
        "parts": [
            {"out": str(out), "asked": float(share), "rows": n}
            for out, share, n in zip(outs, exact, written, strict=True)
        ],
        **found,
        "counts": first.as_dict(),
        "notes": notes,
    }


def fractions(shares: Sequence[float], n: int) -> list[Fraction]:
    """Shares that add up to one. ``DataError`` for a wrong number of them, or one that is not positive."""
    if len(shares) != n:
        raise DataError(f"--parts names {len(shares)} shares for {n} parts; give one for each")
    if not all(0 < share < float("inf") for share in shares):
        raise DataError(f"--parts {','.join(map(str, shares))}: every share must be above 0, such as 0.8,0.1,0.1")
    exact = [Fraction(str(share)) for share in shares]
    return [share / sum(exact) for share in exact]


def _number(label: str, names: dict[str, int], where: str) -> int:
    if label not in names and len(names) >= MOST_LABELS:
        raise DataError(f"{where}: more than {MOST_LABELS:,} different labels; is {label[:40]!r} really a label?")
    return names.setdefault(label, len(names))


class _Rows:
    """Rows with their group and label; without a format that is known, rows are compared whole."""

    def __init__(self, given: Input, by: str | None, stratify: bool) -> None:
        self.given, self.by, self.stratify = given, by, stratify
        self.whole = False
        try:
            self.door: Door | None = given.door()
        except DataError:
            if given.source.format != "auto" or given.source.columns:
                raise
            self.door, self.whole = None, True

    def read(self, counts: Counts, what: str, seed: int) -> Iterator[tuple[Row, int, str]]:
        if self.door is None:
            pairs: Iterator[tuple[Row, Any]] = ((row, None) for row in self.given.rows(counts, what))
        else:
            pairs = self.given.records(counts, what, self.door)
        for row, record in pairs:
            try:
                group = content_of(row, record) if self.by is None else json_key(value_of(row, self.by))
                label = label_of(row, record) if self.stratify else ""
            except RowError as error:
                self.given.drop(row, error, counts)
                continue
            yield row, hash64(group, seed), label

    def said(self) -> list[str]:
        unknown = "the format is not known, so only rows that are equal as a whole are kept together"
        return [unknown] if self.whole and self.by is None else []


def label_of(row: Row, record: Any) -> str:
    """A row's label as text. Raises ``RowError`` where there is none."""
    label = record.label if isinstance(record, Labelled) else lookup(row.value, "label", {})
    if isinstance(label, dict | list) or label is None:
        raise RowError("the row has no label", reason="no label")
    return str(label)


# --- which row goes where -----------------------------------------------------------------------------------------------


def assign(learned: Learned, shares: Sequence[Fraction], outs: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
    """The part of every row, uint8, and what to report. Groups stay whole; parts and labels are exact to a row if they can be."""
    groups = np.frombuffer(learned.groups, dtype=np.uint64)
    n = len(groups)
    labels = np.frombuffer(learned.labels, dtype=np.uint16) if learned.names else np.zeros(n, dtype=np.uint16)
    names = list(learned.names) or [""]
    sizes = np.bincount(labels, minlength=len(names))
    asked = [int(x) for x in largest_remainders([share * n for share in shares], n)]
    if 0 in asked:
        empty = outs[asked.index(0)]
        raise DataError(f"{empty}: would have no row, for {n:,} rows are too few for a share of {float(min(shares)):g}")
    room = label_targets(sizes.tolist(), shares, asked)  # (labels, parts) rows still to be placed
    target = room.copy()
    parts = np.empty(n, dtype=np.uint8)
    order = np.argsort(groups, kind="stable")  # by hash: a random order that does not depend on the rows'
    starts = np.flatnonzero(np.concatenate([[True], groups[order][1:] != groups[order][:-1]]))
    lengths = np.diff(np.concatenate([starts, [n]]))
    edges = np.cumsum([float(share) for share in shares])[:-1]
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        rows = order[start : start + length]
        held = np.bincount(labels[rows], minlength=len(names))
        wanted = int(np.searchsorted(edges, float(groups[rows[0]]) / 2**64, side="right"))
        part = _part_for(held, room, wanted)
        room[:, part] -= held
        parts[rows] = part
    singles = order[starts[lengths == 1]]
    for label in range(len(names)):
        mine = singles[labels[singles] == label] if len(names) > 1 else singles
        take = _fill(room[label], len(mine))
        parts[mine] = np.repeat(np.arange(len(shares), dtype=np.uint8), take)
        room[label] -= take
    return parts, _report(parts, labels, names, target, lengths, outs)


def _part_for(held: np.ndarray, room: np.ndarray, wanted: int) -> int:
    """The part that a group's hash names, unless that would overfill it and another has more room."""
    mine = held > 0
    over = np.maximum(held[mine, None] - room[mine], 0).sum(axis=0)  # rows too many, per part
    return wanted if over[wanted] == 0 else int(np.lexsort((-room[mine].sum(axis=0), over))[0])


def _fill(room: np.ndarray, n: int) -> np.ndarray:
    """How many of ``n`` single rows each part takes: its room, and where groups took too much, as near as can be."""
    take = np.maximum(room, 0)
    while (excess := int(take.sum()) - n) > 0:
        fullest = int(take.argmax())
        take[fullest] -= min(excess, max(1, int(take[fullest]) // 2))
    return take


def largest_remainders(exact: Sequence[Fraction], total: int) -> np.ndarray:
    """Whole numbers next to ``exact`` that add up to ``total``; the largest fractions are rounded up."""
    whole = np.array([int(x) for x in exact], dtype=np.int64)
    rest = sorted(range(len(exact)), key=lambda i: (-(exact[i] - int(exact[i])), i))
    for i in rest[: total - int(whole.sum())]:
        whole[i] += 1
    return whole


def label_targets(sizes: Sequence[int], shares: Sequence[Fraction], totals: Sequence[int]) -> np.ndarray:
    """(labels, parts) rows: each within one row of its exact share, labels and parts adding up."""
    cells = np.array([[int(size * share) for share in shares] for size in sizes], dtype=np.int64)
    need = np.array(totals) - cells.sum(axis=0)
    left = np.array(sizes) - cells.sum(axis=1)
    largest = shares.index(max(shares))
    for label in np.argsort(-left, kind="stable"):
        exact = [sizes[label] * share for share in shares]
        inexact = [p for p in range(len(shares)) if exact[p] != int(exact[p])]

        def rank(part: int, label: int = int(label)) -> tuple[bool, int, int]:
            """A label that the largest part lacks goes there; else the part that needs most, so that the last label fits."""
            lacks = part == largest and cells[label, part] == 0 and need[part] > 0
            return not lacks, -int(need[part]), part

        for part in sorted(inexact, key=rank)[: left[label]]:
            cells[label, part] += 1
            need[part] -= 1
    return cells


def _report(
    parts: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    target: np.ndarray,
    lengths: np.ndarray,
    outs: Sequence[Path],
) -> dict[str, Any]:
    table = np.zeros((len(names), len(outs)), dtype=np.int64)
    np.add.at(table, (labels, parts), 1)
    off = np.abs(table.sum(axis=0) - target.sum(axis=0))
    repeated = lengths[lengths > 1]
    notes = []
    if len(repeated):
        notes.append(
            f"{int(repeated.sum()):,} rows in {len(repeated):,} groups of equal ones ({int((repeated - 1).sum()):,} "
            "duplicates): each group is in one part"
        )
    if off.any():
        notes.append(f"groups are not parted, so a part is up to {int(off.max()):,} rows off its share")
    found: dict[str, Any] = {
        "duplicates": {"groups": len(repeated), "rows": int(repeated.sum())},
        "off_by": int(off.max()),
        "notes": notes,
    }
    if names != [""]:
        found["labels"] = {name: table[i].tolist() for i, name in enumerate(names)}
        for i, name in enumerate(names):
            missing = [out.name for out, rows in zip(outs, table[i], strict=True) if not rows]
            if missing:
                notes.append(
                    f"label {name!r} has {int(table[i].sum()):,} rows, too few for every part: none in {', '.join(missing)}"
                )
            elif np.abs(table[i] - target[i]).max() > 0:
                notes.append(
                    f"label {name!r}: equal rows stay together, so its shares are up to {int(np.abs(table[i] - target[i]).max())} rows off"
                )
    return found
