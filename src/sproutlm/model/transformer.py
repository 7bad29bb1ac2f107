"""The one decoder. ``forward`` is: embed, blocks, norm, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig
from .attention import Attention, document_mask
from .init import init_weights
from .kv_cache import KVCache
from .layers import RMSNorm, SwiGLU
from .rope import rope_tables

# A head maps (hidden (batch, seq, dim), output weight (vocab, dim)) to logits, or to a loss computed without them.
Head = Callable[[Tensor, Tensor], Any]


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, mask, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Decoder-only language model.

    ``model(tokens)`` maps (batch, seq) int64 to (batch, seq, vocab) logits. ``positions`` (batch, seq) restart in each
    packed document; ``document_ids`` (batch, seq) keep packed documents apart; ``cache`` continues a generation;
    ``head`` replaces the last step, so that a loss can be computed inside ``forward`` without full logits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size <= 0:
            raise ValueError("ModelConfig.vocab_size is 0: set it from the tokenizer before building the model")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """Weight of the output projection, (vocab, dim): the embedding's own where they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def init_weights(self, seed: int) -> Transformer:
        """Fill every parameter from ``seed`` and its own name; returns self."""
        init_weights(self, seed)
        return self

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        head: Head | None = None,
    ) -> Any:
        seq = tokens.shape[1]
        x = self.embed_tokens(tokens)  # (batch, seq, dim)
        if positions is None:
            positions = torch.arange(seq, device=tokens.device) if cache is None else cache.positions(seq)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        if cache is not None:
            mask = cache.mask(seq)
        else:
            mask = None if document_ids is None else document_mask(document_ids)
        if mask is not None:
            # Additive and in the compute type once, instead of converted from bool again in every layer.
            mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, float("-inf"))
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        if cache is not None:
            cache.advance(seq)
        return (head or F.linear)(self.norm(x), self.output_weight)
