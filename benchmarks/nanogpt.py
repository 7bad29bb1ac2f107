"""GPT-2's shape with nanoGPT's initialisation, in plain torch: the baseline of the training benchmarks.

Source: Radford et al. 2019 (blocks, learned positions, tied head) and nanoGPT's ``model.py`` (initialisation: 0.02, the
projections into the residual stream divided by the root of twice the layers).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class GPT2Block(nn.Module):
    """Attention and a GELU network of four times the width, each behind a LayerNorm; ``(rows, seq, dim)`` to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc, self.out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.ln_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.out(F.gelu(self.fc(self.ln_2(x))))


class GPT2(nn.Module):
    """Token ids ``(rows, seq)`` -> logits ``(rows, seq, vocab)``; with ``head``, what that makes of the last hidden
    states and the tied output matrix. The other arguments of ``Transformer.forward`` are accepted and not used: GPT-2
    attends across the whole row. ``positions``: the longest row."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.embed_tokens, self.wpe = nn.Embedding(vocab, dim), nn.Embedding(positions, dim)
        self.layers = nn.ModuleList(GPT2Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scaled = name.endswith(("proj.weight", "out.weight"))
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * layers) if scaled else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, positions=None, document_ids=None, cache=None, head=None, routing=None):  # type: ignore[no-untyped-def]
        x = self.embed_tokens(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return (head or F.linear)(self.ln_f(x), self.embed_tokens.weight)
