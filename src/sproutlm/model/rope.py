"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the rotate-half layout that Hugging Face checkpoints use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.model import ModelConfig, RopeScaling


def rope_frequencies(dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Angular frequency of each channel pair, radians per token, float32: ``theta ** (-2i / dim)``. (dim/2,)"""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    return 1.0 / (theta**exponents)


def rope_tables(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` (..., seq), each (..., 1, seq, rotary_dim), ready to broadcast over heads.

    Made from the config on every call: a buffer would be left uninitialised by meta-device construction, and bf16
    angles would lose whole turns beyond a few hundred tokens, so the angle stays float32 until its cosine is taken.
    """
    frequencies, scale = scaled_frequencies(positions, config)
    angles = positions[..., None].float() * frequencies  # (..., seq, rotary_dim/2)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-3)  # (..., 1, seq, rotary_dim)
    if scale == 1.0:
        return angles.cos().to(dtype), angles.sin().to(dtype)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys ``x`` (batch, heads, seq, head_dim); channels beyond the tables' width pass as they are."""
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((apply_rope(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# --- longer contexts --------------------------------------------------------------------------------------------------


def scaled_frequencies(positions: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies (rotary_dim/2,) float32 under the config's ``rope_scaling``, and the factor on the tables; those of
    ``dynamic`` differ by token, (..., seq, rotary_dim/2)."""
    dim, theta, scaling, device = config.rotary_dim, config.rope_theta, config.rope_scaling, positions.device
    if scaling is None:
        return rope_frequencies(dim, theta, device), 1.0
    if scaling.kind == "linear":
        return rope_frequencies(dim, theta, device) / scaling.factor, 1.0
    original = scaling.original_max_seq_len or config.max_seq_len
    if scaling.kind == "dynamic":
        return _dynamic(dim, theta, scaling.factor, original, positions), 1.0
    if scaling.kind == "llama3":
        return _llama3(rope_frequencies(dim, theta, device), scaling, original), 1.0
    return _yarn(rope_frequencies(dim, theta, device), theta, scaling, original), _yarn_attention(scaling)


def _dynamic(dim: int, theta: float, factor: float, original: int, positions: Tensor) -> Tensor:
    """NTK-aware: the base grows with the document's length, so that short documents are what they were, whatever longer
    ones share their batch. (..., seq) -> (..., seq, rotary_dim/2)"""
    lengths = document_lengths(positions).clamp_min(original).float()
    base = theta * (factor * lengths / original - (factor - 1)) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float() / dim
    return 1.0 / (base[..., None] ** exponents)


def document_lengths(positions: Tensor) -> Tensor:
    """Length of the document that each position belongs to, where a document is a run of positions that grow by one:
    its last position + 1. (..., seq) -> (..., seq)"""
    seq = positions.shape[-1]
    goes_on = positions[..., 1:] == positions[..., :-1] + 1
    last = torch.cat((~goes_on, torch.ones_like(positions[..., :1], dtype=torch.bool)), dim=-1)
    slots = torch.arange(seq, device=positions.device).expand_as(positions)
    ends = slots.masked_fill(~last, seq).flip(-1).cummin(-1).values.flip(-1)  # slot of each document's last token
    return positions.gather(-1, ends) + 1


def _llama3(frequencies: Tensor, scaling: RopeScaling, original: int) -> Tensor:
    """Long wavelengths are divided by the factor, short ones are left, and those between are blended (Llama 3.1)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = original * frequencies / (2 * math.pi)  # of each channel over the original context
    blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0 = divided whole, 1 = left alone
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(frequencies: Tensor, theta: float, scaling: RopeScaling, original: int) -> Tensor:
    """NTK by parts (Peng et al. 2023, arXiv:2309.00071): as ``_llama3``, but blended over channels, not wavelengths."""
    dim = 2 * len(frequencies)

    def channel(turns: float) -> float:
        """The channel pair that turns so many times over the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32, device=frequencies.device)
    divided = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)  # 0 = left alone, 1 = divided whole
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)


def _yarn_attention(scaling: RopeScaling) -> float:
    """Factor on cosines and sines, so that the softmax of longer contexts stays as sharp."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)
