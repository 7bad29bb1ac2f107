"""Causal self-attention: grouped queries (GQA), optional QK-norm, rotary positions, windows, and document masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig
from .block_attention import KEPT, block_attention
from .kv_cache import KVCache
from .layers import RMSNorm, softcap as capped
from .products import Linear
from .rope import apply_rope

FEW_QUERIES = 16  # below, as when generating, torch's fused kernel has the smaller fixed cost


def in_blocks(device: str, dtype: torch.dtype, grouped: bool, queries: int, keys: int) -> bool:
    """Whether ``block_attention`` is the faster way: on CPU in bf16; in float32 where torch's fused kernel would repeat
    the keys of grouped heads and the rows are short (51 against 34 ms forward and backward at (4, 8, 512, 64))."""
    if device != "cpu" or queries < FEW_QUERIES:
        return False
    return dtype == torch.bfloat16 or (dtype == torch.float32 and grouped and keys <= KEPT)


def document_mask(document_ids: Tensor) -> Tensor:
    """True where a query may see a key: same document, not later. (batch, seq) -> (batch, 1, seq, seq) bool.

    Padding carries one id of its own (-1), so a padding query sees padding, never nothing.
    """
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return same.tril()[:, None]


def row_mask(document_ids: Tensor | None, seq: int, window: int, device: torch.device) -> Tensor | None:
    """What each token of a row may see without a cache, bool and broadcast to (batch, 1, seq, seq); None = plain causal.

    ``window``: keys that a query sees at most, its own included; 0 = all.
    """
    visible = None if document_ids is None else document_mask(document_ids)
    if not 0 < window < seq:
        return visible
    if visible is None:
        visible = torch.ones(1, 1, seq, seq, dtype=torch.bool, device=device).tril()
    return visible.triu(1 - window)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Softmax attention, the one place that chooses a back-end.

    ``q`` (batch, heads, seq, head_dim); ``k``, ``v`` (batch, kv_heads, keys, head_dim); ``mask`` additive, broadcast to
    (batch, 1, seq, keys), which lets no query see a later key; ``scale`` default 1/sqrt(head_dim). Returns (batch, heads, seq, head_dim).
    """
    grouped = k.shape[1] != q.shape[1]
    if not softcap and in_blocks(q.device.type, q.dtype, grouped, q.shape[2], k.shape[2]):
        return block_attention(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    if not softcap:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped, scale=scale
        )
    if mask is None and causal:
        seq = q.shape[2]
        mask = torch.full((seq, seq), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = capped((q * (scale or q.shape[-1] ** -0.5)) @ k.mT, softcap)  # (batch, heads, seq, keys)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.attend = attend  # replaced where several devices share each row
        bias = config.attention_bias
        self.q_proj = Linear(config.dim, self.n_heads * self.head_dim, bias=bias or config.qkv_bias)
        self.k_proj = Linear(config.dim, self.n_kv_heads * self.head_dim, bias=bias or config.qkv_bias)
        self.v_proj = Linear(config.dim, self.n_kv_heads * self.head_dim, bias=bias or config.qkv_bias)
        self.o_proj = Linear(self.n_heads * self.head_dim, config.dim, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        extra_value: Tensor | None = None,
    ) -> Tensor:
        """(batch, seq, dim) -> (batch, seq, dim). ``mask`` None means plain causal, or one query over the whole cache.

        ``extra_value`` (batch, seq, kv_heads, head_dim) is added to the values before they are cached: what a table of
        value embeddings knows of each token (see ``research.py``).
        """
        batch, seq, _ = x.shape
        # (batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)
        q = self.q_norm(self.q_proj(x).view(batch, seq, self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, seq, self.n_kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, seq, self.n_kv_heads, self.head_dim)
        v = (v if extra_value is None else v + extra_value).transpose(1, 2)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        causal = mask is None and cache is None
        out = self.attend(q, k, v, mask, causal, self.scale, self.softcap)  # (batch, heads, seq, head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, seq, self.n_heads * self.head_dim))
