"""Linear + cross-entropy in chunks: the one log-probability function. Full logits never exist, float32 ones never at all.

A chunk's logits are in the compute type; a few rows of them at a time, as many as the processor's own cache holds, become
float32, then the gradient, and go back into the same place. So a chunk is read and written twice in memory instead of
eight times, and a chunk can be large, which its products gain from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.products import product

IGNORE = -100
CHUNK_BYTES = 64 * 2**20  # of logits in the compute type
CACHED_BYTES = 2**20  # of float32 rows: about a core's own cache
VOCAB_BLOCK = 16_384  # rows of the weight's gradient made by one product: oneDNN's rate falls by a quarter beyond that


def chunk_tokens(vocab: int, dtype: torch.dtype) -> int:
    """Tokens whose logits exist at once."""
    return max(128, CHUNK_BYTES // (vocab * dtype.itemsize))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T)[target]. The gradient is made in the forward pass, chunk by chunk, while
    the logits are at hand, so that backward only scales it.

    With Z = sum(exp(logits)), ``z_loss`` * log(Z)^2 of each target adds ``2 * z_loss * log(Z) * softmax`` to the gradient
    of its logits and nothing to the sum; the second output is the sum of those squares, 0 where ``z_loss`` is 0.

    ``scale``: what the sum will be multiplied by before the backward pass. The gradients are made with it, before they are
    rounded; backward divides by it again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        softcap: float,
        z_loss: float,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight: Tensor | None = None
        if ctx.needs_input_grad[1]:
            # float32 sums over chunks: a bf16 sum would lose small contributions to frequent tokens.
            several = hidden.shape[0] > chunk
            dtype = at_least_float32(weight.dtype) if several else weight.dtype
            grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        total = torch.zeros((), dtype=at_least_float32(hidden.dtype), device=hidden.device)
        squares = torch.zeros_like(total)
        for start in range(0, hidden.shape[0], chunk):
            h, t = hidden[start : start + chunk], targets[start : start + chunk]
            logits = product(h, weight.T)  # (chunk, vocab)
            rows = _rows_at_once(logits)
            for part, wanted in zip(logits.split(rows), t.split(rows), strict=True):
                loss, square = _gradient_in_place(part, wanted, softcap, z_loss, scale)
                total += loss
                squares += square
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = product(logits, weight)
            if grad_weight is not None:
                for first in range(0, len(weight), VOCAB_BLOCK):
                    grad_weight[first : first + VOCAB_BLOCK] += product(logits[:, first : first + VOCAB_BLOCK].T, h)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(squares)
        ctx.scale = scale
        return total, squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.scale
        grads = ctx.saved_tensors
        if scale.device.type != "cpu" or scale != 1:  # as it is for a sum; asking a GPU would make it wait
            grads = [None if grad is None else grad * scale.to(grad.dtype) for grad in grads]
        return (*grads, *(None,) * 5)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows_at_once(logits: Tensor) -> int:
    """Rows turned from logits into gradients by one round of operators; a GPU takes a whole chunk."""
    if logits.device.type != "cpu":
        return len(logits)
    return max(1, CACHED_BYTES // (4 * logits.shape[1]))


def _gradient_in_place(
    logits: Tensor, targets: Tensor, softcap: float, z_loss: float, scale: float
) -> tuple[Tensor, Tensor | float]:
    """Put the gradient of ``scale`` times the loss in place of ``logits`` (rows, vocab); returns the losses' sum, and that
    of log(Z)^2."""
    x = logits.to(at_least_float32(logits.dtype))  # the logits themselves where they are float32
    slope = None
    if softcap:
        x = x.div_(softcap).tanh_()
        slope = 1 - x.square()  # of the cap, at each logit
        x.mul_(softcap)
    of_target = x.gather(1, targets[:, None])
    highest = x.amax(-1, keepdim=True)
    z = x.sub_(highest).exp_().sum(-1, keepdim=True)
    log_z = z.log().add_(highest)
    x.div_(z)  # softmax
    if z_loss:
        x.mul_(1 + 2 * z_loss * log_z)
    x.scatter_add_(1, targets[:, None], torch.full_like(log_z, -1.0))
    if slope is not None:
        x.mul_(slope)
    if scale != 1.0:
        x.mul_(scale)
    if x is not logits:
        logits.copy_(x)
    return (log_z - of_target).sum(), log_z.square().sum() if z_loss else 0.0


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int | None = None,
    *,
    softcap: float = 0.0,
    scale: float = 1.0,
    trained: Tensor | None = None,
) -> Tensor:
    """Sum of the token losses in nats, float32 scalar; targets of -100 are left out before any product.

    ``softcap`` bounds the logits: the model's ``logit_softcap``. ``scale``: what the caller multiplies the sum by before
    ``backward()``: in fp16 the gradient of a logit is then rounded at that size. Values and gradients are the same.
    ``trained``: places of the trained targets in the flattened rows, where they are known: finding them makes a GPU wait.
    Shapes: hidden (batch, seq, dim), weight (vocab, dim), targets (batch, seq) int64.
    """
    return cross_entropy_with_z(
        hidden, weight, targets, chunk, softcap=softcap, z_loss=0.0, scale=scale, trained=trained
    )[0]


def cross_entropy_with_z(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int | None = None,
    *,
    softcap: float = 0.0,
    z_loss: float,
    scale: float = 1.0,
    trained: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``cross_entropy_sum``, and the sum over its targets of log(Z)^2, which has no gradient of its own.

    The first one's gradient is that of the sum of losses + ``z_loss`` * log(Z)^2, its value that of the losses alone: what
    keeps logits from drifting (Chowdhery et al. 2022, arXiv:2204.02311, section 5: 1e-4) stays out of the figure printed.
    """
    keep = (targets != IGNORE).reshape(-1).nonzero().squeeze(1) if trained is None else trained
    flat = hidden.reshape(-1, hidden.shape[-1])
    chunk = chunk or chunk_tokens(len(weight), weight.dtype)
    wanted = targets.reshape(-1)[keep]
    return _LinearCrossEntropy.apply(flat[keep], weight, wanted, chunk, softcap, z_loss, scale)


@torch.no_grad()
def token_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None, softcap: float = 0.0
) -> Tensor:
    """Loss of each target in nats, (batch, seq) float32; 0 where the target is -100. For evaluation: no gradient."""
    out = torch.zeros(targets.numel(), dtype=torch.float32, device=hidden.device)
    flat_targets = targets.reshape(-1)
    keep = (flat_targets != IGNORE).nonzero().squeeze(1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    for index in keep.split(chunk or chunk_tokens(len(weight), weight.dtype)):
        logits = product(flat[index], weight.T).float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        out[index] = logits.logsumexp(-1) - logits.gather(1, flat_targets[index][:, None])[:, 0]
    return out.view(targets.shape)
