"""Optimizers that look at whole matrices (Muon), where ranks hold parts of them or copies: put together, and shared out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .collectives import gather_stacked
from .dims import AXES
from .layout import Layout, Piece


class MatrixWork:
    """``pieces`` of parameters by identity. A parameter of three dimensions is a stack of matrices (experts), whole here or on
    another rank; one of two dimensions may be split."""

    def __init__(self, layout: Layout, parameters: dict[str, Tensor]) -> None:
        self.ranks = layout.ranks
        self.pieces = {id(p): layout.piece(name, p) for name, p in parameters.items()}

    def piece(self, parameter: Tensor) -> Piece:
        return self.pieces.get(id(parameter)) or Piece(tuple(parameter.shape))

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """Of the whole matrix, or of the stack that lies here."""
        return self.piece(parameter).shape if parameter.ndim == 2 else tuple(parameter.shape)

    def key(self, parameter: Tensor) -> tuple[object, ...]:
        """Parameters of one key may be worked on as one stack."""
        return (self.shape(parameter), self.piece(parameter).splits)

    def whole(self, stack: Tensor, like: Tensor) -> Tensor:
        """(count, rows here, cols here) -> (count, rows, cols), for parameters such as ``like``."""
        piece = self._stacked(stack, like)
        return stack if piece is None else piece.whole(stack, self.ranks)

    def cut(self, stack: Tensor, like: Tensor) -> Tensor:
        """Back to what lies here."""
        piece = self._stacked(stack, like)
        return stack if piece is None else piece.cut(stack, self.ranks)

    def _stacked(self, stack: Tensor, like: Tensor) -> Piece | None:
        piece = self.piece(like)
        if like.ndim != 2 or not piece.splits:
            return None
        splits = tuple((axes, dim + 1) for axes, dim in piece.splits)
        return replace(piece, shape=(len(stack), *piece.shape), splits=splits)

    def shared(self, stack: Tensor, like: Tensor, work: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """``work`` on every matrix of ``stack`` (..., rows, cols), each done by one of the ranks that hold it. ``dtype`` holds its
        results exactly: they are sent in it."""
        held = self.piece(like).axes if like.ndim > 2 else ()
        axes = tuple(axis for axis in AXES if axis not in held)
        group, n = self.ranks.group(axes), self.ranks.dims.size(axes)
        if group is None:
            return work(stack)
        matrices = stack.flatten(0, -3)  # (count, rows, cols)
        each = -(-len(matrices) // n)
        mine = matrices[each * self.ranks.index(axes) :][:each]
        done = work(mine).to(dtype) if len(mine) else mine.to(dtype)
        done = gather_stacked(F.pad(done, (0, 0, 0, 0, 0, each - len(done))), group).flatten(0, 1)
        return done[: len(matrices)].to(stack.dtype).view(stack.shape)
