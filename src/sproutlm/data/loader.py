"""``batch(step)``: a pure function of (data fingerprint, seed, step, rank, world size). Resuming is knowing the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError
from .packing import pack, packing_statistics

if TYPE_CHECKING:
    from .shards import TokenDataset

IGNORE = -100
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """Packed rows. ``tokens``, ``targets`` (-100 = not trained), ``positions``: (rows, seq) int64; ``document_ids`` the
    same shape, -1 on padding, or None when nothing has to be kept apart; ``row_ids`` (rows,) index into the epoch."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    document_ids: Tensor | None
    row_ids: Tensor

    @cached_property
    def trained(self) -> int:
        """Number of trained targets."""
        return int((self.targets != IGNORE).sum())

    @cached_property
    def trained_index(self) -> Tensor:
        """Places of the trained targets in the flattened rows, (trained,) int64. Known before a batch goes to a GPU, which
        would have to be waited for."""
        return (self.targets.reshape(-1) != IGNORE).nonzero().squeeze(1)

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of at most ``rows`` rows; the last may be smaller."""
        ids = self.document_ids
        return [
            Batch(
                self.tokens[i : i + rows],
                self.targets[i : i + rows],
                self.positions[i : i + rows],
                None if ids is None else ids[i : i + rows],
                self.row_ids[i : i + rows],
            )
            for i in range(0, len(self.tokens), rows)
        ]

    def row_part(self, which: int, parts: int) -> Batch:
        """The tokens and targets of part ``which`` of each row; positions and documents stay those of whole rows. Rows that do
        not split evenly are padded."""
        if parts == 1:
            return self
        padding = (0, -self.tokens.shape[1] % parts)
        ids = self.document_ids
        return replace(
            self,
            tokens=F.pad(self.tokens, padding).chunk(parts, 1)[which],
            targets=F.pad(self.targets, padding, value=IGNORE).chunk(parts, 1)[which],
            positions=F.pad(self.positions, padding),
            document_ids=None if ids is None else F.pad(ids, padding, value=-1),
        )

    def without_targets(self) -> Batch:
        """The first row, in which nothing is trained: for a rank that has no rows left while others have."""
        one = self.split(1)[0]
        return replace(one, targets=torch.full_like(one.targets, IGNORE))

    def to(self, device: torch.device | str) -> Batch:
        """On another device; a copy from pinned memory does not wait for it."""
        if self.tokens.device == torch.device(device):
            return self
        moved = self._each(lambda x: x.to(device, non_blocking=True))
        moved.__dict__["trained"] = self.trained
        moved.__dict__["trained_index"] = self.trained_index.to(device, non_blocking=True)
        return moved

    def pinned(self) -> Batch:
        """In memory that a GPU can copy from on its own."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """``row_ids`` stay where they are: only messages read them."""
        ids = self.document_ids
        return replace(
            self,
            tokens=change(self.tokens),
            targets=change(self.targets),
            positions=change(self.positions),
            document_ids=None if ids is None else change(ids),
        )


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of each value under ``key`` (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permute(indices: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where each of ``indices`` goes under the permutation of ``range(size)`` that ``key`` names.

    A four-round Feistel network over the next power of four, walked along its cycle until it lands inside: each index
    costs O(1), so no permutation of a whole epoch is ever made or stored.
    """
    if size <= 1:
        return np.zeros_like(indices)
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    digest = hashlib.sha256(key.encode()).digest()
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(4)]
    out = indices.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> shift, out[todo] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right, round_key) & mask)
        out[todo] = (left << shift) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


class Loader:
    """Packs a data set once, then gives any step's batch directly.

    Which tokens are targets: those that the data set marks as trained, where the same row holds the token before them.
    With ``document_mask`` that must be a token of the same document. Without it a row is one context, counted through:
    a document's first token may be a target (in our shards that is its leading end token, which is not trained); only
    the first token of a long document's further piece never is, because what it continues stands in another row. With
    ``stride`` rows are overlapping windows (``pack``), and every token of a window but its first is trained each time.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        seq_len: int,
        rows_per_step: int,
        seed: int,
        packing: str = "best_fit",
        document_mask: bool = True,
        pad_id: int = 0,
        repeat: int = 1,
        stride: int | None = None,
    ) -> None:
        self.dataset, self.seq_len, self.rows_per_step = dataset, seq_len, rows_per_step
        self.document_mask, self.pad_id = document_mask, pad_id
        # An epoch holds a repeated source's documents several times; ``entries`` maps packed entries to documents.
        entries = np.tile(dataset.epoch_entries(), repeat)
        lengths = dataset.lengths[entries]
        self.packing = pack(lengths, seq_len, packing, stride=stride)
        if not self.packing.n_rows:
            raise DataError(f"{dataset.path}: no document to train on; the data set or the part of it used is empty")
        segment_document = entries[self.packing.segment_document]
        self._segment_start = dataset.starts[segment_document] + self.packing.segment_offset  # (segments,) tokens
        self._key = f"{dataset.fingerprint}/{seed}"
        self.statistics = packing_statistics(lengths, self.packing, seq_len)

    @property
    def rows(self) -> int:
        """Packed rows, each of which one epoch holds once."""
        return self.packing.n_rows

    @property
    def rows_per_epoch(self) -> int:
        return self.packing.n_rows

    def epoch_of(self, step: int) -> float:
        """Passes over the data that are complete when ``step`` begins."""
        return step * self.rows_per_step / self.rows_per_epoch

    def row_indices(self, step: int) -> np.ndarray:
        """Rows of the whole step, over all ranks: the epoch's permutation at consecutive places. int64"""
        places = np.arange(step * self.rows_per_step, (step + 1) * self.rows_per_step, dtype=np.int64)
        epochs, within = np.divmod(places, self.rows_per_epoch)
        out = np.empty_like(places)
        for epoch in np.unique(epochs):  # a step spans more epochs than two only when the data are tiny
            chosen = epochs == epoch
            out[chosen] = permute(within[chosen], self.rows_per_epoch, f"{self._key}/{epoch}")
        return out

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's rows of ``step``: every ``world_size``-th, so that all ranks together give the same step."""
        if self.rows_per_step < world_size:
            raise DataError(
                f"a step has {self.rows_per_step} rows, fewer than {world_size} ranks; raise train.batch_tokens to at "
                f"least {world_size * self.seq_len}"
            )
        return self.rows_batch(self.row_indices(step)[rank::world_size])

    def rows_batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given packed rows as one batch; width trimmed to the longest row, rounded up to a multiple of 8."""
        rows = np.asarray(rows, dtype=np.int64)
        first = self.packing.row_starts[rows]
        n_segments = self.packing.row_starts[rows + 1] - first
        segments = _ranges(first, n_segments)  # all segments of the rows, row by row
        lengths = self.packing.segment_length[segments]
        of_token = np.repeat(np.arange(len(segments)), lengths)  # (tokens,) which of ``segments`` each token is in
        row = np.repeat(np.arange(len(rows)), n_segments)[of_token]
        row_lengths = np.bincount(row, minlength=len(rows))
        column = _ranges(np.zeros_like(row_lengths), row_lengths)
        within = _ranges(np.zeros_like(lengths), lengths)  # place in the segment
        ids, trained = self.dataset.gather(self._segment_start[segments][of_token] + within)

        begins = within == 0
        if self.document_mask:
            is_target = trained & ~begins
        else:
            continued = self.packing.segment_offset[segments][of_token] > 0
            is_target = trained & (column > 0) & ~(begins & continued)
        width = min(self.seq_len, -(-int(row_lengths.max(initial=1)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)

        def grid(fill: int, rows_: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Tensor:
            out = np.full((len(rows), width), fill, dtype=np.int64)
            out[rows_, columns] = values
            return torch.from_numpy(out)

        document_ids = None
        if self.document_mask and (n_segments > 1).any():
            number = _ranges(np.zeros_like(n_segments), n_segments)  # 0, 1, ... in each row
            document_ids = grid(-1, row, column, number[of_token])
        return Batch(
            tokens=grid(self.pad_id, row, column, ids),
            targets=grid(IGNORE, row[is_target], column[is_target] - 1, ids[is_target]),
            positions=grid(0, row, column, within if self.document_mask else column),
            document_ids=document_ids,
            row_ids=torch.from_numpy(rows.copy()),
        )


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ranges ``starts[i]`` up to ``starts[i] + counts[i]``, one after another."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
