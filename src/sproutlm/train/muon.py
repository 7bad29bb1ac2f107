"""Muon: momentum, orthogonalised (Jordan et al. 2024), with Polar-Express iterations (Amsel et al. 2025,
arXiv:2505.16932), per-row variance normalisation (NorMuon, Li et al. 2025, arXiv:2510.05491) and weight decay only
where update and weight agree in sign (Chen et al. 2025, arXiv:2510.12402)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributed.layout import Layout
from ..distributed.matrix_work import MatrixWork

# Minimax-optimal odd polynomials for five steps on singular values in [1e-3, 1], with a safety factor of 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Entries of all matrices that are updated at once: about 0.4 GB of working room in bf16, 0.7 GB in float32. A model of 60 M
# parameters still does it in one; one of 380 M would need 2.4 GB more for it.
STACK_ENTRIES = 2**25


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace each matrix's singular values by about 1. (..., rows, cols) -> the same, float32 (float64 in float64)."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the Gram matrix is then the smaller of the two
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(torch.promote_types(dtype, torch.float32))


def stack_at_once(shape: Sequence[int]) -> int:
    """Matrices of this shape that one update stacks: the working room stays bounded, however many layers there are."""
    return max(1, STACK_ENTRIES // max(1, math.prod(shape)))


def variance_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """One running mean square for each place on the longer side: (rows, 1) for tall matrices, (1, cols) for wide ones."""
    *stack, rows, cols = shape
    return (*stack, rows, 1) if rows >= cols else (*stack, 1, cols)


class Muon(torch.optim.Optimizer):
    """For the blocks' matrices, or stacks of them (experts). Those of one shape go through a few batched products.

    ``lr`` is per matrix before the factor sqrt(max(1, rows / cols)); ``compute`` is the type of the iteration.
    Every state tensor is float32. ``work`` puts matrices together that lie on several ranks, and shares out the products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        beta2: float = 0.95,
        compute: torch.dtype = torch.float32,
        work: MatrixWork | None = None,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, beta2=beta2))
        self.compute = compute
        self.work = work or MatrixWork(Layout(), {})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon takes matrices only, got shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None and 0 not in self.work.shape(p):  # no expert lies on this rank
                    by_shape[self.work.key(p)].append(p)
            for params in by_shape.values():
                at_once = stack_at_once(self.work.shape(params[0]))
                for start in range(0, len(params), at_once):
                    self._update(params[start : start + at_once], group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["variance"] = p.new_zeros(variance_shape(self.work.shape(p)))
        mu, lr = group["momentum"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - mu)
        updates = torch.stack([g.lerp(b, mu) for g, b in zip(grads, buffers, strict=True)])  # Nesterov
        updates = self.work.whole(updates, params[0])
        polar = partial(orthogonalize, dtype=self.compute)
        updates = self.work.shared(updates, params[0], polar, self.compute)  # (count, ..., rows, cols)
        updates = self._normalise_variance(updates, params, group["beta2"])
        rows, cols = updates.shape[-2:]
        updates *= lr * max(1.0, rows / cols) ** 0.5
        updates = self.work.cut(updates, params[0])
        if group["weight_decay"]:
            weights = torch.stack(params)
            updates += lr * group["weight_decay"] * weights * (updates * weights >= 0)
        torch._foreach_sub_(params, list(updates.unbind(0)))

    def _normalise_variance(self, updates: Tensor, params: list[Tensor], beta2: float) -> Tensor:
        """Divide each row (or column) by its running root-mean-square, keeping the matrix's Frobenius norm."""
        rows, cols = updates.shape[-2:]
        dim = -1 if rows >= cols else -2
        mean_square = updates.square().mean(dim=dim, keepdim=True)
        variance = torch.stack([self.state[p]["variance"] for p in params]).lerp(mean_square, 1 - beta2)
        for p, v in zip(params, variance, strict=True):
            self.state[p]["variance"].copy_(v)
        scaled = updates * variance.clamp_min(1e-10).rsqrt()
        before = updates.norm(dim=(-2, -1), keepdim=True)
        return scaled * (before / scaled.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
