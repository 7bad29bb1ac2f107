"""Causal attention in bf16 on CPU, as batched products over blocks of queries.

torch's fused kernel computes small tiles in float32 there and reaches a tenth of the rate of a bf16 product. Here each
block of queries meets all keys that it may see in one product of oneDNN, so that about half of the score matrix is never
made; up to ``KEPT`` keys the probabilities wait for the backward pass, beyond it they are computed again, block by block,
and memory grows with the length, not with its square. Processor time of forward and backward beside the fused kernel's
(one thread, AVX-512 bf16): 25 against 88 ms at (4, 8, 512, 64) with 2 key heads, 53 against 87 ms at (1, 12, 1024, 64),
126 against 206 ms at (1, 8, 2048, 64).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

KEPT = 512


def block_rows(keys: int) -> int:
    """Queries of one block. Long rows in larger ones: more above the diagonal, in fewer and larger products."""
    return 128 if keys <= 1024 else 256


def block_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention in which no query sees a key after it.

    ``q`` (batch, heads, seq, head_dim); ``k``, ``v`` (batch, kv_heads, keys, head_dim), keys >= seq, where query i stands
    at key keys - seq + i; ``mask`` additive, broadcast to (batch, 1, seq, keys), None = causal alone. Returns
    (batch, heads, seq, head_dim), in memory as (batch, seq, heads, head_dim).
    """
    out: Tensor = _BlockAttention.apply(q, k, v, mask, scale)
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        shape = _Shape(q, k)
        queries, keys, values = shape.by_group(q * scale), shape.flat(k), shape.flat(v)
        out = shape.like_queries(q)
        keep = ctx.needs_input_grad[0] and shape.keys <= KEPT
        kept = []
        for start, stop, seen in shape.blocks():
            probabilities = _probabilities(shape, queries[:, :, start:stop], keys[:, :seen], mask, start, stop)
            shape.grouped(out)[:, :, :, start:stop] = shape.regroup(torch.bmm(probabilities, values[:, :seen]))
            if keep:
                kept.append(probabilities)
        ctx.save_for_backward(queries, k, v, mask, *kept)
        ctx.shape, ctx.scale = shape, scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        queries, k, v, mask, *kept = ctx.saved_tensors
        shape: _Shape = ctx.shape
        keys, values = shape.flat(k), shape.flat(v)
        grad_out = shape.by_group(grad_outputs[0])
        grad_q = shape.like_queries(queries)
        # Sums over blocks in float32: a bf16 sum would round once per block.
        grad_k = torch.zeros(keys.shape, dtype=torch.float32)
        grad_v = torch.zeros_like(grad_k)
        for number, (start, stop, seen) in enumerate(shape.blocks()):
            block = queries[:, :, start:stop]
            probabilities = kept[number] if kept else _probabilities(shape, block, keys[:, :seen], mask, start, stop)
            grad = grad_out[:, :, start:stop].flatten(1, 2)  # (groups, rows, head_dim)
            grad_v[:, :seen] += torch.bmm(probabilities.mT, grad)
            towards = torch.bmm(grad, values[:, :seen].mT)  # gradient of the probabilities
            scores = torch.ops.aten._softmax_backward_data(towards, probabilities, -1, probabilities.dtype)
            shape.grouped(grad_q)[:, :, :, start:stop] = shape.regroup(torch.bmm(scores, keys[:, :seen]))
            grad_k[:, :seen] += torch.bmm(scores.mT, block.flatten(1, 2))
        return (
            grad_q.mul_(ctx.scale).transpose(1, 2),
            grad_k.to(k.dtype).view(k.shape),
            grad_v.to(v.dtype).view(v.shape),
            None,
            None,
        )


class _Shape:
    """The sizes of one call, and its tensors seen by group: the query heads that share one key head lie together."""

    def __init__(self, q: Tensor, k: Tensor) -> None:
        self.batch, self.heads, self.seq, self.head_dim = q.shape
        self.kv_heads, self.keys = k.shape[1], k.shape[2]
        self.group = self.heads // self.kv_heads

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """First and last query of each block, and the number of keys that its last query sees."""
        size = block_rows(self.keys)
        for start in range(0, self.seq, size):
            stop = min(start + size, self.seq)
            yield start, stop, self.keys - self.seq + stop

    def flat(self, x: Tensor) -> Tensor:
        """(batch, kv_heads, keys, head_dim) -> (batch * kv_heads, keys, head_dim)"""
        return x.reshape(self.batch * self.kv_heads, self.keys, self.head_dim)

    def by_group(self, x: Tensor) -> Tensor:
        """(batch, heads, seq, head_dim) -> (batch * kv_heads, group, seq, head_dim)"""
        return x.reshape(self.batch * self.kv_heads, self.group, self.seq, self.head_dim)

    def like_queries(self, x: Tensor) -> Tensor:
        return x.new_empty(self.batch, self.seq, self.heads, self.head_dim)

    def grouped(self, x: Tensor) -> Tensor:
        """A view of (batch, seq, heads, head_dim) as (batch, kv_heads, group, seq, head_dim)."""
        return x.view(self.batch, self.seq, self.kv_heads, self.group, self.head_dim).permute(0, 2, 3, 1, 4)

    def regroup(self, x: Tensor) -> Tensor:
        """(batch * kv_heads, group * rows, head_dim) -> (batch, kv_heads, group, rows, head_dim)"""
        return x.view(self.batch, self.kv_heads, self.group, -1, self.head_dim)


def _probabilities(shape: _Shape, queries: Tensor, keys: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
    """Of one block, (batch * kv_heads, group * rows, seen): ``queries`` are scaled, ``keys`` those that it sees."""
    rows, seen = stop - start, keys.shape[1]
    scores = torch.bmm(queries.flatten(1, 2), keys.mT)
    if mask is None:
        above = torch.full((rows, rows), float("-inf"), dtype=scores.dtype).triu(1)
        scores.view(-1, shape.group, rows, seen)[..., seen - rows :].add_(above)
    else:
        by_row = scores.view(shape.batch, shape.kv_heads * shape.group, rows, seen)
        by_row.add_(mask[:, :, start:stop, :seen])
    return scores.softmax(-1)
