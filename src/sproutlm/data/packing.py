"""Which document, or piece of one, stands where: rows of at most ``capacity`` tokens, decided from lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Rows as flat int64 arrays. Row ``r`` holds segments ``row_starts[r]`` up to ``row_starts[r + 1]``; a segment is
    ``segment_length`` tokens of document ``segment_document``, from its token ``segment_offset`` on."""

    row_starts: np.ndarray  # (rows + 1,)
    segment_document: np.ndarray  # (segments,)
    segment_offset: np.ndarray  # (segments,)
    segment_length: np.ndarray  # (segments,)

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1


def pack(lengths: np.ndarray, capacity: int, mode: str = "best_fit", *, long: str = "split") -> Packing:
    """Pack documents of ``lengths`` tokens into rows of at most ``capacity``; empty documents take no part.

    ``best_fit``: best-fit-decreasing, every row begins at the start of a document or of a long document's piece;
    ``stream``: documents in order, cut at ``capacity``; ``none``: one segment a row. A document longer than
    ``capacity`` is cut into pieces (``long="split"``) or loses its tail (``"truncate"``).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if long == "truncate":
        lengths = np.minimum(lengths, capacity)
    elif long != "split":
        raise ValueError(f"long={long!r} is unknown; expected split or truncate")
    if mode == "stream":
        return _stream(lengths, capacity)
    document, offset, length = _pieces(lengths, capacity)
    if mode == "none":
        return Packing(np.arange(len(document) + 1, dtype=np.int64), document, offset, length)
    if mode != "best_fit":
        raise ValueError(f"packing {mode!r} is unknown; expected best_fit, stream or none")
    order = np.argsort(-length, kind="stable")
    row, n_rows = _best_fit_decreasing(length[order], capacity)
    # Rows in the order they were opened; inside a row, segments in the order they were placed.
    placed = np.argsort(row, kind="stable")
    row_starts = np.searchsorted(row[placed], np.arange(n_rows + 1))
    order = order[placed]
    return Packing(row_starts, document[order], offset[order], length[order])


def _pieces(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents as (document, offset, length) of segments of at most ``capacity`` tokens, in document order."""
    counts = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    offset = (np.arange(len(document)) - first) * capacity
    return document, offset, np.minimum(lengths[document] - offset, capacity)


def _stream(lengths: np.ndarray, capacity: int) -> Packing:
    """Cut the concatenation at every multiple of ``capacity``: a boundary begins a row, a document, or both."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    starts = np.unique(np.concatenate([ends - lengths, np.arange(0, total, capacity)]))
    starts = starts[starts < total]
    document = np.searchsorted(ends, starts, side="right")
    row_starts = np.searchsorted(starts, np.arange(0, total, capacity))
    return Packing(
        np.append(row_starts, len(starts)).astype(np.int64),
        document,
        starts - (ends - lengths)[document],
        np.diff(np.append(starts, total)),
    )


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Row of each segment, and the number of rows. ``lengths`` must not increase along the array.

    Each segment goes into the fullest row that still holds it (of equal ones, the one that came to that room first).
    Segments of one length are placed together: the fullest row takes as many as fit, then the next row. That is the
    same result as one by one, at a cost that grows with the number of different lengths, not of segments.
    """
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows_with: dict[int, deque[np.ndarray]] = {}  # room left -> rows, in runs
    rooms: list[int] = []  # the keys of rows_with, sorted
    n_rows = at = 0
    values, counts = np.unique(-lengths, return_counts=True)
    for length, left in zip((-values).tolist(), counts.tolist(), strict=True):
        while left:
            where = bisect_left(rooms, length)
            fits = (rooms[where] if where < len(rooms) else capacity) // length  # segments of this length in one row
            if where < len(rooms):
                room = rooms[where]
                rows = rows_with[room].popleft()
                if not rows_with[room]:
                    del rows_with[room], rooms[where]
            else:
                room, rows = capacity, np.arange(n_rows, n_rows - (-left // fits))
                n_rows += len(rows)
            used = min(len(rows), -(-left // fits))
            if used < len(rows):
                _put(rows_with, rooms, room, rows[used:], first=True)
            placed = min(left, used * fits)
            row_of[at : at + placed] = np.repeat(rows[:used], fits)[:placed]
            in_last = placed - (used - 1) * fits
            _put(rows_with, rooms, room - fits * length, rows[: used - 1])
            _put(rows_with, rooms, room - in_last * length, rows[used - 1 : used])
            at, left = at + placed, left - placed
    return row_of, n_rows


def _put(
    rows_with: dict[int, deque[np.ndarray]], rooms: list[int], room: int, rows: np.ndarray, first: bool = False
) -> None:
    """Note that ``rows`` have ``room`` left; full rows are forgotten."""
    if room == 0 or not len(rows):
        return
    if room not in rows_with:
        rows_with[room] = deque()
        insort(rooms, room)
    if first:
        rows_with[room].appendleft(rows)
    else:
        rows_with[room].append(rows)
