"""Which document, or piece of one, stands where: rows of at most ``capacity`` tokens, decided from lengths alone."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Rows as flat arrays. Row ``r`` holds segments ``row_starts[r] : row_starts[r + 1]``; a segment is ``length``
    tokens of ``document`` from ``offset`` on. All int64."""

    row_starts: np.ndarray
    segment_document: np.ndarray
    segment_offset: np.ndarray
    segment_length: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1

    def row(self, index: int) -> slice:
        return slice(int(self.row_starts[index]), int(self.row_starts[index + 1]))


def pack(lengths: np.ndarray, capacity: int, mode: str = "best_fit", *, long: str = "split") -> Packing:
    """Pack documents of ``lengths`` tokens into rows.

    ``best_fit``: best-fit-decreasing, every row begins at the start of a document or of a long document's piece;
    ``stream``: documents in order, cut at ``capacity``; ``none``: one segment a row. A document longer than
    ``capacity`` is cut into pieces (``long="split"``) or loses its tail (``"truncate"``).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if mode == "stream":
        return _stream(lengths, capacity)
    document, offset, length = _pieces(lengths, capacity, long)
    if mode == "none":
        return Packing(np.arange(len(document) + 1, dtype=np.int64), document, offset, length)
    if mode != "best_fit":
        raise ValueError(f"packing {mode!r} is unknown; expected best_fit, stream or none")
    return _best_fit_decreasing(document, offset, length, capacity)


def _pieces(lengths: np.ndarray, capacity: int, long: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents as segments of at most ``capacity`` tokens, in document order."""
    if long == "truncate":
        keep = np.flatnonzero(lengths > 0)
        return keep, np.zeros(len(keep), dtype=np.int64), np.minimum(lengths[keep], capacity)
    counts = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths)), counts)
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
    length = np.diff(np.append(starts, total))
    row_starts = np.searchsorted(starts, np.arange(0, total, capacity))
    return Packing(np.append(row_starts, len(starts)), document, starts - (ends - lengths)[document], length)


def _best_fit_decreasing(document: np.ndarray, offset: np.ndarray, length: np.ndarray, capacity: int) -> Packing:
    """Longest segment first, each into the fullest row that still holds it (ties: the row opened first).

    Rows are kept by room left, one heap for each amount; a tree of bits over the amounts finds the least room that is
    enough, so a segment costs O(log capacity), not a walk over the open rows.
    """
    order = np.argsort(-length, kind="stable")
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    present = 0  # bit r is set when some open row has room r
    row_of = np.empty(len(order), dtype=np.int64)
    n_rows = 0
    for segment in order.tolist():
        need = int(length[segment])
        enough = present >> need
        if enough:
            room = need + (enough & -enough).bit_length() - 1
            row = heapq.heappop(rows_with_room[room])
            if not rows_with_room[room]:
                present &= ~(1 << room)
        else:
            room, row = capacity, n_rows
            n_rows += 1
        row_of[segment] = row
        if room > need:
            heapq.heappush(rows_with_room[room - need], row)
            present |= 1 << (room - need)
    # Rows in the order they were opened; inside a row, segments in the order they were placed.
    placed = order[np.argsort(row_of[order], kind="stable")]
    row_starts = np.searchsorted(row_of[placed], np.arange(n_rows + 1))
    return Packing(row_starts, document[placed], offset[placed], length[placed])
