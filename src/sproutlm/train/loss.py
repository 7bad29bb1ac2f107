"""Linear + cross-entropy in chunks: the one log-probability function. Full float32 logits never exist.

At 4,096 tokens and 6,400 ids float32 logits are 105 MB and their gradient as much again; a chunk of 1,024 tokens keeps
both under 27 MB each, inside the last-level cache of common machines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.products import product

IGNORE = -100
CHUNK_TOKENS = 1024


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T)[target]. The gradient is made in the forward pass, chunk by chunk, while
    the logits are at hand, so that backward only scales it.

    With Z = sum(exp(logits)), ``z_loss`` * log(Z)^2 of each target adds ``2 * z_loss * log(Z) * softmax`` to the gradient
    of its logits and nothing to the sum; the second output is the sum of those squares, 0 where ``z_loss`` is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, softcap: float, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # float32 accumulation over chunks: a bf16 sum would lose small contributions to frequent tokens.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        squares = torch.zeros_like(total)
        for start in range(0, hidden.shape[0], chunk):
            h, t = hidden[start : start + chunk], targets[start : start + chunk]
            logits = product(h, weight.T).float()  # (chunk, vocab)
            slope = None
            if softcap:
                bounded = logits.div_(softcap).tanh_()
                slope = 1 - bounded.square()  # of the cap, at each logit
                logits = bounded.mul_(softcap)
            lse = logits.logsumexp(-1, keepdim=True)
            total += (lse - logits.gather(1, t[:, None])).sum()
            grad = logits.sub_(lse).exp_()  # softmax, in place
            if z_loss:
                squares += lse.square().sum()
                grad.mul_(1 + 2 * z_loss * lse)
            grad.scatter_add_(1, t[:, None], torch.full_like(lse, -1.0))
            if slope is not None:
                grad.mul_(slope)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = product(grad, weight)
            if ctx.needs_input_grad[1]:
                grad_weight += product(grad.T, h).float()
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None)
        ctx.mark_non_differentiable(squares)
        return total, squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            *(None,) * 4,
        )


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int = CHUNK_TOKENS,
    *,
    softcap: float = 0.0,
) -> Tensor:
    """Sum of the token losses in nats, float32 scalar; targets of -100 are left out before any product.

    ``softcap`` bounds the logits: the model's ``logit_softcap``.
    Shapes: hidden (batch, seq, dim), weight (vocab, dim), targets (batch, seq) int64.
    """
    return cross_entropy_with_z(hidden, weight, targets, chunk, softcap=softcap, z_loss=0.0)[0]


def cross_entropy_with_z(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int = CHUNK_TOKENS,
    *,
    softcap: float = 0.0,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """``cross_entropy_sum``, and the sum over its targets of log(Z)^2, which has no gradient of its own.

    The first one's gradient is that of the sum of losses + ``z_loss`` * log(Z)^2, its value that of the losses alone: what
    keeps logits from drifting (Chowdhery et al. 2022, arXiv:2204.02311, section 5: 1e-4) stays out of the figure printed.
    """
    keep = (targets != IGNORE).reshape(-1).nonzero().squeeze(1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _LinearCrossEntropy.apply(flat[keep], weight, targets.reshape(-1)[keep], chunk, softcap, z_loss)


@torch.no_grad()
def token_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK_TOKENS, softcap: float = 0.0
) -> Tensor:
    """Loss of each target in nats, (batch, seq) float32; 0 where the target is -100. For evaluation: no gradient."""
    out = torch.zeros(targets.numel(), dtype=torch.float32, device=hidden.device)
    flat_targets = targets.reshape(-1)
    keep = (flat_targets != IGNORE).nonzero().squeeze(1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    for index in keep.split(chunk):
        logits = product(flat[index], weight.T).float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        out[index] = logits.logsumexp(-1) - logits.gather(1, flat_targets[index][:, None])[:, 0]
    return out.view(targets.shape)
