"""The routed experts of a layer on CPU, one expert after the other, each from gathering its tokens to adding its results.

Product by product over all experts, every intermediate result is as large as the layer and goes through memory several
times, and autograd joins and splits it again. One expert's rows stay in the cache from the first product to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .products import product


def expert_loop(
    x: Tensor, weights: Tensor, tokens: Tensor, ends: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """Sum over a token's experts of ``weight * down(silu(gate(x)) * up(x))``.

    ``x`` (tokens, dim); ``weights`` (rows,) and ``tokens`` (rows,) int64 of each choice, sorted by expert; expert e has the
    rows up to ``ends[e]``; ``gate``, ``up`` (experts, inner, dim), ``down`` (experts, dim, inner). Returns (tokens, dim).
    """
    out: Tensor = _ExpertLoop.apply(x, weights, tokens, ends, gate, up, down)
    return out


class _ExpertLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, tokens: Tensor, ends: Tensor, gate: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        out = torch.zeros_like(x)
        keep = any(ctx.needs_input_grad)
        kept = len(tokens) if keep else 0
        gates, ups = x.new_empty(kept, gate.shape[1]), x.new_empty(kept, gate.shape[1])
        for expert, start, stop in _spans(ends):
            mine = tokens[start:stop]
            rows = x[mine]
            gated, value = product(rows, gate[expert].T), product(rows, up[expert].T)
            if keep:
                gates[start:stop], ups[start:stop] = gated, value
            hidden = F.silu(gated, inplace=True).mul_(value).mul_(weights[start:stop, None])
            out.index_add_(0, mine, product(hidden, down[expert].T))
        if keep:
            ctx.save_for_backward(x, weights, tokens, ends, gate, up, down, gates, ups)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grad_outputs
        x, weights, tokens, ends, gate, up, down, gates, ups = ctx.saved_tensors
        grad_x, grad_weights = torch.zeros_like(x), torch.zeros_like(weights)
        sums = torch.promote_types(x.dtype, torch.float32)
        grad_gate, grad_up, grad_down = (torch.empty_like(matrix) for matrix in (gate, up, down))
        for idle in (ends.diff(prepend=ends.new_zeros(1)) == 0).nonzero().flatten().tolist():  # experts without a row
            for matrix in (grad_gate, grad_up, grad_down):
                matrix[idle].zero_()
        for expert, start, stop in _spans(ends):
            mine, share = tokens[start:stop], weights[start:stop, None]
            rows, grad, gated, value = x[mine], grad_out[mine], gates[start:stop], ups[start:stop]
            active = F.silu(gated)
            hidden = active * value
            towards = product(grad, down[expert])  # gradient of the weighted hidden
            grad_weights[start:stop] = (towards * hidden).sum(-1, dtype=sums).to(weights.dtype)
            grad_down[expert] = product(grad.T, hidden.mul_(share))
            towards.mul_(share)
            of_value = active.mul_(towards)
            of_gate = torch.ops.aten.silu_backward(towards.mul_(value), gated)
            grad_up[expert] = product(of_value.T, rows)
            grad_gate[expert] = product(of_gate.T, rows)
            grad_x.index_add_(0, mine, product(of_value, up[expert]).add_(product(of_gate, gate[expert])))
        return grad_x, grad_weights, None, None, grad_gate, grad_up, grad_down


def _spans(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    """Expert, first and last row of each that has rows."""
    start = 0
    for expert, stop in enumerate(ends.tolist()):
        if stop > start:
            yield expert, start, stop
        start = stop
