"""Packing decides from lengths alone where every token stands, and loses none."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.data.packing import Packing, pack

DOCUMENTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11]]


def rows_of(packing: Packing, documents: list[list[int]]) -> list[list[int]]:
    rows = []
    for first, last in zip(packing.row_starts[:-1], packing.row_starts[1:], strict=True):
        row: list[int] = []
        for s in range(first, last):
            start = packing.segment_offset[s]
            row += documents[packing.segment_document[s]][start : start + packing.segment_length[s]]
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("mode", "long", "expected"),
    [
        # The first two are TRL's published examples (docs/architecture.md).
        ("best_fit", "truncate", [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7]]),
        ("best_fit", "split", [[1, 2, 3, 4], [8, 9, 10, 5], [6, 7, 11]]),
        ("stream", "split", [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]),
        ("stream", "truncate", [[1, 2, 3, 4], [6, 7, 8, 9], [10, 11]]),
        ("none", "split", [[1, 2, 3, 4], [5], [6, 7], [8, 9, 10], [11]]),
        ("none", "truncate", [[1, 2, 3, 4], [6, 7], [8, 9, 10], [11]]),
    ],
)
def test_rows_are_the_golden_ones(mode, long, expected):
    packing = pack(np.array([len(d) for d in DOCUMENTS]), 4, mode, long=long)
    assert rows_of(packing, DOCUMENTS) == expected
    assert packing.n_rows == len(expected)


@pytest.mark.parametrize("mode", ["best_fit", "stream", "none"])
def test_every_token_is_packed_once_over_more_than_10000_rows(mode):
    """Pitfall 11: the exact multiset of tokens, at a size where an estimate would not show a loss."""
    lengths = np.random.default_rng(0).integers(0, 90, size=40_000)  # some are empty, some longer than a row
    packing = pack(lengths, 64, mode)
    assert packing.n_rows > 10_000
    starts = np.cumsum(lengths) - lengths
    where = starts[packing.segment_document] + packing.segment_offset
    index = np.concatenate([np.arange(a, a + n) for a, n in zip(where, packing.segment_length, strict=True)])
    assert (np.bincount(index, minlength=lengths.sum()) == 1).all()
    row_lengths = np.add.reduceat(packing.segment_length, packing.row_starts[:-1])
    assert row_lengths.max() <= 64 and row_lengths.min() > 0
    assert (packing.segment_length > 0).all()


def best_fit_one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook algorithm: longest first, each into the fullest row that holds it; of equal rows, into the one that
    came to that room first."""
    rows: list[list[int]] = []
    queue: list[int] = []  # rows, the latest changed last
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in queue if capacity - sum(rows[r]) >= length]
        if fitting:
            row = max(fitting, key=lambda r: sum(rows[r]))
            queue.remove(row)
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(length)
        queue.append(row)
    return rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 30))
def test_best_fit_by_lengths_equals_best_fit_one_by_one(lengths, capacity):
    packing = pack(np.array(lengths, dtype=np.int64), capacity)
    rows = np.split(packing.segment_length, packing.row_starts[1:-1]) if lengths else []
    assert [row.tolist() for row in rows] == best_fit_one_by_one(lengths, capacity)


def test_same_lengths_give_the_same_packing():
    lengths = np.random.default_rng(1).integers(1, 300, size=3000)
    first, second = pack(lengths, 128), pack(lengths.copy(), 128)
    for name in ("row_starts", "segment_document", "segment_offset", "segment_length"):
        assert (getattr(first, name) == getattr(second, name)).all()


def test_100000_documents_are_packed_in_seconds_and_tightly():
    """Pitfall 11: rows that are mostly padding waste most of the compute."""
    lengths = np.minimum(np.random.default_rng(2).lognormal(5, 1, 100_000).astype(int) + 1, 600)
    began = time.perf_counter()
    packing = pack(lengths, 256)
    assert time.perf_counter() - began < 2
    assert lengths.sum() / (packing.n_rows * 256) > 0.98


def test_best_fit_rows_begin_at_a_document_or_a_full_rows_remainder():
    packing = pack(np.array([300, 10, 70, 64, 129, 3]), 64)
    assert (packing.segment_offset % 64 == 0).all()


def test_nothing_to_pack_gives_no_row():
    for mode in ("best_fit", "stream", "none"):
        assert pack(np.zeros(0, dtype=np.int64), 8, mode).n_rows == 0
        assert pack(np.zeros(3, dtype=np.int64), 8, mode).n_rows == 0


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="best_fit, stream or none"):
        pack(np.array([1]), 8, "bestfit")
    with pytest.raises(ValueError, match="split or truncate"):
        pack(np.array([1]), 8, long="drop")
