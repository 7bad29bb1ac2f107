"""Exchanges between ranks that gradients pass through: the backward pass of each is its mirror image.

``group`` None is this rank alone; n is its size. Sums only, never means.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

# Torch 2.13 renames two; the older names are gone in time.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_stacked(x: Tensor, group: Any) -> Tensor:
    """Every rank's ``x``, stacked: (...) -> (n, ...)"""
    n = dist.get_world_size(group)
    out = x.new_empty(n * x.shape[0], *x.shape[1:])
    _all_gather(out, x.detach().contiguous(), group=group)
    return out.view(n, *x.shape)


def gather_parts(part: Tensor, dim: int, length: int, n: int, group: Any) -> Tensor:
    """The tensor of ``length`` along ``dim`` whose parts, by ``torch.chunk``'s rule, the ranks hold."""
    if group is None:
        return part
    each = -(-length // n)
    part = part.movedim(dim, 0)
    padded = F.pad(part, (0, 0) * (part.ndim - 1) + (0, each - part.shape[0]))
    whole = gather_stacked(padded, group).flatten(0, 1)[:length]
    return whole.movedim(0, dim).contiguous()


class _GatherRow(torch.autograd.Function):
    """Parts of rows put together: (batch, seq / n, ...) -> (batch, seq, ...). Backward: sum, and keep one's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return gather_stacked(x, group).movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum_row(grads[0], ctx.group), None


class _SumRow(torch.autograd.Function):
    """Whole rows summed over ranks, each of which keeps its part: (batch, seq, ...) -> (batch, seq / n, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum_row(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gather_stacked(grads[0], ctx.group).movedim(0, 1).flatten(1, 2), None


def _sum_row(x: Tensor, group: Any) -> Tensor:
    n = dist.get_world_size(group)
    parts = x.unflatten(1, (n, x.shape[1] // n)).movedim(1, 0).contiguous()  # (n, batch, seq / n, ...)
    out = torch.empty_like(parts[0])
    _reduce_scatter(out, parts.flatten(0, 1), group=group)
    return out


def gather_row(x: Tensor, group: Any) -> Tensor:
    """(batch, seq / n, ...) -> (batch, seq, ...)"""
    return _GatherRow.apply(x, group)


def sum_row(x: Tensor, group: Any) -> Tensor:
    """(batch, seq, ...) of which each rank has a summand -> its part of the sum, (batch, seq / n, ...)"""
    return _SumRow.apply(x, group)


class _Heads(torch.autograd.Function):
    """(batch, heads, seq / n, dim) -> (batch, heads / n, seq, dim), or back where ``out`` is false."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, out: bool) -> Tensor:
        ctx.group, ctx.out = group, out
        return _heads_to_rows(x, group) if out else _rows_to_heads(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        back = _rows_to_heads if ctx.out else _heads_to_rows
        return back(grads[0], ctx.group), None, None


def exchange(x: Tensor, group: Any) -> Tensor:
    """Part i of (n, ...) goes to rank i; what comes back is stacked by where it came from."""
    x = x.contiguous()
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


def _heads_to_rows(x: Tensor, group: Any) -> Tensor:
    n = dist.get_world_size(group)
    parts = exchange(x.unflatten(1, (n, x.shape[1] // n)).movedim(1, 0), group)  # (n, batch, heads / n, seq / n, dim)
    return parts.movedim(0, 2).flatten(2, 3)


def _rows_to_heads(x: Tensor, group: Any) -> Tensor:
    n = dist.get_world_size(group)
    parts = exchange(x.unflatten(2, (n, x.shape[2] // n)).movedim(2, 0), group)  # (n, batch, heads / n, seq / n, dim)
    return parts.movedim(0, 1).flatten(1, 2)


def heads_to_rows(x: Tensor, group: Any) -> Tensor:
    """All heads of a part of each row -> some heads of whole rows."""
    return _Heads.apply(x, group, True)


def rows_to_heads(x: Tensor, group: Any) -> Tensor:
    """Some heads of whole rows -> all heads of a part of each row."""
    return _Heads.apply(x, group, False)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _exchange_rows(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange_rows(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


def _exchange_rows(x: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


def exchange_rows(x: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    """The first ``send[0]`` rows go to rank 0, and so on; (sum(send), ...) -> (sum(receive), ...), by where they came from."""
    return _Rows.apply(x, send, receive, group)
