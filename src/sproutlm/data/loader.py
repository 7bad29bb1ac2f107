"""``batch(step)``: a pure function of (data fingerprint, seed, step, rank, world size). Resuming is knowing the step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .packing import pack

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

    def to(self, device: torch.device | str) -> Batch:
        if self.tokens.device == torch.device(device):
            return self
        ids = self.document_ids
        return replace(
            self,
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            positions=self.positions.to(device),
            document_ids=None if ids is None else ids.to(device),
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
    """Packs a data set once, then gives any step's batch directly."""

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
    ) -> None:
        self.dataset, self.seq_len, self.rows_per_step = dataset, seq_len, rows_per_step
        self.document_mask, self.pad_id = document_mask, pad_id
        # An epoch holds a repeated source's documents several times; ``entries`` maps packed entries to documents.
        self.entries = dataset.epoch_entries()
        self.packing = pack(dataset.lengths[self.entries], seq_len, packing)
        self._key = f"{dataset.fingerprint}/{seed}/{seq_len}/{packing}"

    @property
    def rows_per_epoch(self) -> int:
        return self.packing.n_rows

    def epoch_of(self, step: int) -> float:
        """Passes over the data that are complete when ``step`` begins."""
        return step * self.rows_per_step / self.rows_per_epoch

    def row_indices(self, step: int) -> np.ndarray:
        """Rows of the whole step, over all ranks: the epoch's permutation at consecutive places."""
        places = np.arange(step * self.rows_per_step, (step + 1) * self.rows_per_step, dtype=np.int64)
        epochs, within = np.divmod(places, self.rows_per_epoch)
        out = np.empty_like(places)
        for epoch in np.unique(epochs):  # a step spans more epochs than one only when the data are tiny
            chosen = epochs == epoch
            out[chosen] = permute(within[chosen], self.rows_per_epoch, f"{self._key}/{epoch}")
        return out

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's rows of ``step``: every ``world_size``-th, so that all ranks together give the same step."""
        return self.rows_batch(self.row_indices(step)[rank::world_size])

    def rows_batch(self, rows: np.ndarray) -> Batch:
        """The given packed rows as one batch; width trimmed to the longest row, rounded up to a multiple of 8."""
        slices = [self.packing.row(int(r)) for r in rows]
        used = [int(self.packing.segment_length[s].sum()) for s in slices]
        width = min(self.seq_len, -(-max(used) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
        shape = (len(rows), width)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        trained = np.zeros(shape, dtype=bool)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, -1, dtype=np.int64)
        for r, segments in enumerate(slices):
            self._fill_row(segments, tokens[r], trained[r], positions[r], documents[r])
        targets = np.full(shape, IGNORE, dtype=np.int64)
        counts = trained[:, 1:]
        if self.document_mask:  # a document's first token is nobody's target: what came before is not its context
            counts = counts & (documents[:, 1:] == documents[:, :-1])
        targets[:, :-1] = np.where(counts, tokens[:, 1:], IGNORE)
        apart = self.document_mask and any(s.stop - s.start > 1 for s in slices)
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(positions),
            torch.from_numpy(documents) if apart else None,
            torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        )

    def _fill_row(
        self, segments: slice, tokens: np.ndarray, trained: np.ndarray, positions: np.ndarray, documents: np.ndarray
    ) -> None:
        at = 0
        for number, segment in enumerate(range(segments.start, segments.stop)):
            document = int(self.entries[self.packing.segment_document[segment]])
            offset, length = int(self.packing.segment_offset[segment]), int(self.packing.segment_length[segment])
            ids, mask = self.dataset.read_document(document, offset, length)
            tokens[at : at + length], trained[at : at + length] = ids, mask
            documents[at : at + length] = number
            start = 0 if self.document_mask else at  # without the mask a row is one context, counted through
            positions[at : at + length] = np.arange(start, start + length)
            at += length
