"""Which part of each weight a rank holds, and the arithmetic that follows from it.

One rule covers every way of splitting: each rank's gradient is that of distinct work (its rows, its part of each row, its heads,
its experts), so **the gradient of a weight is the SUM over all ranks that hold the same part of it**, and nothing is ever a mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .collectives import gather_parts
from .dims import AXES
from .ranks import ALONE, Ranks

BUCKET_BYTES = 32 * 2**20  # of gradients that are added in one call


@dataclass(frozen=True)
class Piece:
    """A part of a tensor of ``shape``: split along a dimension among the ranks of some axes, the outermost split first.

    A split gives the first ranks ``ceil(n / ranks)`` entries each, as ``torch.chunk`` does; the last may have fewer or none.
    """

    shape: tuple[int, ...]
    splits: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes along which ranks hold different parts."""
        return tuple(axis for axes, _ in self.splits for axis in axes)

    def split(self, axes: tuple[str, ...], dim: int) -> Piece:
        return Piece(self.shape, (*self.splits, (axes, dim)))

    def bounds(self, ranks: Ranks) -> list[tuple[int, int]]:
        """First and last (exclusive) entry that this rank holds, along each dimension."""
        bounds = [(0, n) for n in self.shape]
        for axes, dim in self.splits:
            bounds[dim] = self._part(bounds[dim], ranks, axes)
        return bounds

    @staticmethod
    def _part(bounds: tuple[int, int], ranks: Ranks, axes: tuple[str, ...]) -> tuple[int, int]:
        first, last = bounds
        each = -(-(last - first) // ranks.dims.size(axes))
        start = min(last, first + ranks.index(axes) * each)
        return start, min(last, start + each)

    def cut(self, whole: Tensor, ranks: Ranks) -> Tensor:
        """This rank's part of ``whole``, as a view."""
        for dim, (start, stop) in enumerate(self.bounds(ranks)):
            whole = whole.narrow(dim, start, stop - start)
        return whole

    @torch.no_grad()
    def whole(self, part: Tensor, ranks: Ranks) -> Tensor:
        """The whole tensor, from every rank's part. All ranks that hold a part must call it."""
        steps, bounds = [], [(0, n) for n in self.shape]
        for axes, dim in self.splits:
            steps.append((axes, dim, bounds[dim]))
            bounds[dim] = self._part(bounds[dim], ranks, axes)
        for axes, dim, (first, last) in reversed(steps):
            part = gather_parts(part, dim, last - first, ranks.dims.size(axes), ranks.group(axes))
        return part

    def replicas(self, ranks: Ranks) -> int:
        """How many ranks hold this same part."""
        return ranks.size // ranks.dims.size(self.axes)

    def written_here(self, ranks: Ranks) -> bool:
        """Whether this rank is the one of those with the same part that writes it, and the part is not empty."""
        others = tuple(axis for axis in AXES if axis not in self.axes)
        return ranks.index(others) == 0 and all(stop > start for start, stop in self.bounds(ranks))


@dataclass
class Layout:
    """The pieces of a model's parameters by name, on this rank; none are named where it is alone."""

    ranks: Ranks = field(default_factory=lambda: ALONE)
    pieces: Mapping[str, Piece] = field(default_factory=dict)

    @property
    def split(self) -> bool:
        """Whether some weight lies on more than one rank."""
        return any(piece.splits for piece in self.pieces.values())

    @property
    def exchanges(self) -> bool:
        """Whether ranks wait for one another within a forward or backward pass: no rank may leave one out, or add one."""
        return self.split or self.ranks.dims.cp > 1

    def piece(self, name: str, tensor: Tensor) -> Piece:
        """That of parameter ``name``; alone, the whole of it."""
        return self.pieces.get(name) or Piece(tuple(tensor.shape))

    def bounds(self, pieces: Mapping[str, Piece]) -> dict[str, list[tuple[int, int]]] | None:
        """What of each tensor lies here; None where that is all of everything."""
        return {name: piece.bounds(self.ranks) for name, piece in pieces.items()} if self.split else None

    @torch.no_grad()
    def sum_gradients(self, masters: Mapping[str, Tensor]) -> None:
        """Add each gradient over the ranks that hold the same part of its weight, in place. A rank whose rows touched a
        weight nowhere adds zeros."""
        if self.ranks.size == 1:
            return
        by_axes: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
        for name, master in masters.items():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            held = self.pieces[name].axes
            by_axes[tuple(axis for axis in AXES if axis not in held)].append(master.grad)
        for axes, grads in by_axes.items():
            if self.ranks.group(axes) is not None:
                for bucket in _buckets(grads):
                    self._sum(bucket, axes)

    def _sum(self, grads: list[Tensor], axes: tuple[str, ...]) -> None:
        if len(grads) == 1:
            self.ranks.sum_(grads[0], axes)
            return
        flat = self.ranks.sum_(torch.cat([grad.reshape(-1) for grad in grads]), axes)
        parts = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def sum_of_squares(self, names: Sequence[str], norms: Sequence[Tensor]) -> Tensor:
        """Each tensor's norm here -> the sum of squares of the whole, over this rank's share: added over all ranks, every
        entry counts once. 0-dim float64."""
        shares = torch.tensor(
            [1.0 / self.pieces[name].replicas(self.ranks) for name in names],
            dtype=torch.float64,
            device=norms[0].device,
        )
        return (torch.stack(list(norms)).double().square() * shares).sum()

    def whole_norms(self, names: Sequence[str], norms: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's norm here -> that of the whole tensor. One sum over all ranks."""
        if self.ranks.size == 1:
            return list(norms)
        shares = torch.tensor([1.0 / self.pieces[name].replicas(self.ranks) for name in names], dtype=torch.float64)
        squares = torch.stack(list(norms)).double().square() * shares.to(norms[0].device)
        return list(self.ranks.sum_(squares).sqrt().unbind())


def _buckets(grads: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive gradients of one type, as many as ``BUCKET_BYTES`` hold; a larger one is alone."""
    buckets: list[list[Tensor]] = []
    size = math.inf
    for grad in grads:
        nbytes = grad.numel() * grad.element_size()
        if size + nbytes > BUCKET_BYTES or buckets[-1][0].dtype != grad.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(grad)
        size += nbytes
    return buckets
