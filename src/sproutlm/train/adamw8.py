"""AdamW whose two averages take a byte each (Dettmers et al. 2022, arXiv:2110.02861, describe the idea): a quarter of the state.

A byte holds the logarithm of a value against the largest of its block of 256, so that small values keep their digits. What
falls between two codes is rounded at random, so that averages stay true on average: rounded to the nearest, an average that
should fall by 5 % a step would never leave its code. The numbers drawn follow from the step alone, so resuming is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # values that share one float32 scale
SLICE = 2**16  # values updated at once: what is made of them stays in the processor's cache
LEAST = 4096  # entries of a tensor below which its state stays float32


@dataclass(frozen=True)
class Codes:
    """``levels`` values from the block's largest down to 2**-octaves of it, evenly in their logarithm; code 0 is 0."""

    dtype: torch.dtype
    levels: int
    octaves: float

    @property
    def step(self) -> float:
        """Octaves from one code to the next."""
        return self.octaves / (self.levels - 1)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """(blocks, 256), (blocks, 1) -> (blocks, 256) float32"""
        code = codes.float()
        size = code.abs().sub_(self.levels).mul_(self.step).exp2_().mul_(scale)
        return size.mul_(code.sign_())

    def encode(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of ``x`` (blocks, 256); ``noise`` uniform in [0, 1), of the same shape. Of values below the least
        code a signed kind becomes that or 0, in proportion; the other always that: a square that became 0 would be divided by."""
        size = x.abs()
        scale = size.amax(1, keepdim=True)
        size /= scale.clamp_min(torch.finfo(torch.float32).tiny)
        place = size.log2().div_(self.step).add_(self.levels)  # 1 ... levels, -inf for 0
        below = place.floor().clamp_(1, self.levels)
        # Linear between the values of two neighbours, not between their codes.
        share = (place - below).clamp_min_(0).mul_(self.step).exp2_().sub_(1).div_(2**self.step - 1)
        code = below.add_(noise < share).clamp_(max=self.levels)
        if self.dtype == torch.int8:
            lost = noise >= size * 2**self.octaves  # never where size is at least the least code's
            code = code.masked_fill_(lost, 0).mul_(x.sign())
        else:
            code = code.masked_fill_(size == 0, 0)
        return code.to(self.dtype), scale


FIRST = Codes(torch.int8, 127, 16.0)  # one code is 9 % of the next
SECOND = Codes(torch.uint8, 255, 28.0)  # of squares: 8 %, down to 6e-5 of the block's largest root


def state_shapes(parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """What is stored of a parameter: name -> shape."""
    blocks = -(-parameter.numel() // BLOCK)
    codes, scales = (blocks, BLOCK), (blocks, 1)
    return {"step": (1,), "exp_avg": codes, "exp_avg_scale": scales, "exp_avg_sq": codes, "exp_avg_sq_scale": scales}


def state_bytes(entries: int) -> int:
    """Bytes of the state of a parameter of so many entries, its step left out."""
    return -(-entries // BLOCK) * 2 * (BLOCK + 4)


class AdamW8(torch.optim.Optimizer):
    """``torch.optim.AdamW``'s update of float32 parameters, in float32, from averages of a byte."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        noise: dict[tuple[int, torch.device], Tensor] = {}  # (2, SLICE) of a step, the same for every slice
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p] or self._start(p)
                state["step"] += 1
                step = int(state["step"])
                if (step, p.device) not in noise:
                    generator = torch.Generator(p.device).manual_seed(step)
                    noise[step, p.device] = torch.rand(2, SLICE, generator=generator, device=p.device)
                self._update(p, state, step, group, noise[step, p.device])

    def _start(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        for name, shape in state_shapes(p).items():
            kind = {"exp_avg": FIRST.dtype, "exp_avg_sq": SECOND.dtype}.get(name, torch.float32)
            state[name] = torch.zeros(shape, dtype=kind, device=p.device)
        state["step"] = torch.zeros(())  # on the CPU, as AdamW's: read without waiting for a GPU
        return state

    @staticmethod
    def _update(p: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any], noise: Tensor) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        weights, grads = p.view(-1), p.grad.reshape(-1)  # type: ignore[union-attr]
        for start in range(0, p.numel(), SLICE):
            part, grad = weights[start : start + SLICE], grads[start : start + SLICE]
            rows = slice(start // BLOCK, -(-(start + len(part)) // BLOCK))
            grad = F.pad(grad, (0, -len(part) % BLOCK)).view(-1, BLOCK)  # (blocks, 256)
            first = FIRST.decode(state["exp_avg"][rows], state["exp_avg_scale"][rows]).lerp_(grad, 1 - beta1)
            second = SECOND.decode(state["exp_avg_sq"][rows], state["exp_avg_sq_scale"][rows])
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            for name, codes, value, drawn in (("exp_avg", FIRST, first, 0), ("exp_avg_sq", SECOND, second, 1)):
                stored = codes.encode(value, noise[drawn, : value.numel()].view(value.shape))
                state[name][rows], state[f"{name}_scale"][rows] = stored
            root = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
            part.mul_(1 - lr * group["weight_decay"])
            part.addcdiv_(first.view(-1)[: len(part)], root.view(-1)[: len(part)], value=-lr / (1 - beta1**step))
