"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the rotate-half layout that Hugging Face checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Angular frequency of each channel pair, radians per token, float32: ``theta ** (-2i / head_dim)``. (head_dim/2,)"""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    return 1.0 / (theta**exponents)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` (..., seq), each (..., 1, seq, head_dim), ready to broadcast over heads.

    Made from the config on every call: a buffer would be left uninitialised by meta-device construction, and bf16
    angles would lose whole turns beyond a few hundred tokens, so the angle stays float32 until its cosine is taken.
    """
    frequencies = rope_frequencies(head_dim, theta, positions.device)
    angles = positions[..., None].float() * frequencies  # (..., seq, head_dim/2)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-3)  # (..., 1, seq, head_dim)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys ``x`` (batch, heads, seq, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
