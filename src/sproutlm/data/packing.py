"""Which document, or piece of one, stands where: rows of at most ``capacity`` tokens, decided from lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError


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


def pack(
    lengths: np.ndarray, capacity: int, mode: str = "best_fit", *, long: str = "split", stride: int | None = None
) -> Packing:
    """Pack documents of ``lengths`` tokens into rows of at most ``capacity``; empty documents take no part.

    ``best_fit``: best-fit-decreasing, every row begins at the start of a document or of a long document's piece;
    ``stream``: documents in order, cut at ``capacity``; ``none``: one segment a row, so that a row never holds two
    documents. A document longer than ``capacity`` is cut into pieces (``long="split"``) or loses its tail (``"truncate"``).

    ``stride``: rows are windows that begin at 0, ``stride``, 2 * ``stride`` ... of the concatenation (``stream``) or of
    each document (``none``), as long as the one before has not reached the end. Of n tokens these are
    ``1 + ceil((n - capacity) / stride)`` windows, 1 where n <= capacity: every full one, and a shorter last one where
    tokens are left over, so that none is lost. DataError for a stride past ``capacity``, and with ``best_fit``.
    """
    check_stride(stride, capacity, mode)
    step = stride or capacity
    lengths = np.asarray(lengths, dtype=np.int64)
    if long == "truncate":
        lengths = np.minimum(lengths, capacity)
    elif long != "split":
        raise ValueError(f"long={long!r} is unknown; expected split or truncate")
    if mode == "stream":
        return _stream(lengths, capacity, step)
    document, offset, length = _pieces(lengths, capacity, step)
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


def check_stride(stride: int | None, capacity: int, mode: str) -> None:
    """Refuse windows that would skip tokens, or that no packing can keep in order."""
    if stride is None:
        return
    if mode == "best_fit":
        raise DataError(
            f"data.stride={stride} goes with data.packing: stream (windows over the whole text) or none (windows over "
            "each document), not with best_fit, which fills rows with documents; set one of these, or leave stride out"
        )
    if stride > capacity:
        raise DataError(
            f"data.stride={stride} is more than data.seq_len={capacity}: the {stride - capacity} tokens between two "
            "windows would never be trained; set data.stride to at most data.seq_len"
        )


def _windows(lengths: np.ndarray, capacity: int, stride: int) -> np.ndarray:
    """How many windows of ``capacity`` every ``stride`` tokens cover ``lengths`` tokens, 0 for none."""
    return np.where(lengths > 0, 1 + np.maximum(-((capacity - lengths) // stride), 0), 0)


def _pieces(lengths: np.ndarray, capacity: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents as (document, offset, length) of segments of at most ``capacity`` tokens, in document order."""
    counts = _windows(lengths, capacity, stride)
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    offset = (np.arange(len(document)) - first) * stride
    return document, offset, np.minimum(lengths[document] - offset, capacity)


def _stream(lengths: np.ndarray, capacity: int, stride: int) -> Packing:
    """Windows over the concatenation, each cut where a document ends."""
    present = np.flatnonzero(lengths)
    ends = np.cumsum(lengths[present])
    begins = ends - lengths[present]
    total = int(ends[-1]) if len(ends) else 0
    starts = np.arange(int(_windows(np.array(total), capacity, stride)), dtype=np.int64) * stride
    stops = np.minimum(starts + capacity, total)
    first = np.searchsorted(
        ends, starts, side="right"
    )  # the document in which each window begins, and that of its last
    counts = np.searchsorted(ends, stops, side="left") - first + 1
    row_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    window = np.repeat(np.arange(len(starts)), counts)
    document = np.arange(row_starts[-1]) - row_starts[window] + first[window]
    start = np.maximum(starts[window], begins[document])
    stop = np.minimum(stops[window], ends[document])
    return Packing(row_starts, present[document], start - begins[document], stop - start)


def packing_statistics(lengths: np.ndarray, packing: Packing, capacity: int) -> dict[str, Any]:
    """Shares of useful tokens: documents one a row, padded to the longest (``before``), and as packed, padded to
    ``capacity`` (``after``); rows and documents a row. ``lengths`` are those that ``packing`` was made of."""
    lengths = np.asarray(lengths)[np.asarray(lengths) > 0]
    documents, tokens = len(lengths), int(packing.segment_length.sum())
    longest = min(int(lengths.max(initial=1)), capacity)
    alone = _windows(lengths, capacity, capacity).sum()
    return {
        "documents": documents,
        "rows": packing.n_rows,
        "documents_per_row": len(packing.segment_document) / max(packing.n_rows, 1),
        "useful_before": int(lengths.sum()) / max(int(alone) * longest, 1),
        "useful_after": tokens / max(packing.n_rows * capacity, 1),
    }


def packing_lines(statistics: dict[str, Any], mode: str) -> list[str]:
    """The statistics in words."""
    s = statistics
    return [
        f"packing ({mode}): {s['rows']:,} rows, {s['documents_per_row']:.1f} documents in each, {s['useful_after']:.2%} of "
        f"their tokens useful; one document a row, padded to the longest, would be {s['useful_before']:.2%}"
    ]


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
