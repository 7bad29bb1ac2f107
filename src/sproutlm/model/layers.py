"""Normalisation and feed-forward parts. Adding one is a small class here and its name in the config's choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig
from .products import Linear


class _Bf16CpuRMSNorm(torch.autograd.Function):
    """RMSNorm in bf16 on CPU, where ``F.rms_norm`` is a chain of a dozen passes with float32 copies: forward and
    backward of (32, 128, 192) took 8.6 ms there and 2.5 ms here (one thread, AVX-512 bf16). Sums are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # (..., 1)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normalised = x * scale
        ctx.save_for_backward(normalised, weight, scale)
        return normalised * weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        normalised, weight, scale = ctx.saved_tensors
        grad_weight = (grad * normalised).flatten(0, -2).sum(0, dtype=torch.float32).to(weight.dtype)
        grad = grad * weight
        along = (grad * normalised).mean(-1, keepdim=True, dtype=torch.float32).to(grad.dtype)  # (..., 1)
        return (grad - normalised * along).mul_(scale), grad_weight, None


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019); statistics in float32 inside the kernel.

    ``offset``: the factor is 1 + weight, and the whole is computed in float32, as Gemma's checkpoints expect.
    """

    def __init__(self, dim: int, eps: float, offset: bool = False) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:
            return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps).to(x.dtype)
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return _Bf16CpuRMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def normalised(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without a weight, over the last dimension, in the type of ``x``; sums are float32."""
    scale = x.float().square().mean(-1, keepdim=True).add(eps).rsqrt()
    return x * scale.to(x.dtype)


def norm_of(config: ModelConfig) -> nn.Module:
    """The config's norm over the residual stream."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.dim, config.norm_eps)
    return RMSNorm(config.dim, config.norm_eps, config.norm_offset)


class MLP(nn.Module):
    """``down(act(up(x)))``, or with a gate ``down(act(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202).

    (batch, seq, dim) -> (batch, seq, dim)
    """

    def __init__(self, config: ModelConfig, width: int | None = None) -> None:
        super().__init__()
        width, bias = width or config.ffn_dim, config.mlp_bias
        self.gate_proj = Linear(config.dim, width, bias=bias) if config.gated else None
        self.up_proj = Linear(config.dim, width, bias=bias)
        self.down_proj = Linear(width, config.dim, bias=bias)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.up_proj.activated(x, self.activation))
        return self.down_proj(self.gate_proj.activated(x, self.activation) * self.up_proj(x))


def softcap(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``: bounded, and nearly the identity for values well below ``cap``."""
    return cap * torch.tanh(x / cap)
