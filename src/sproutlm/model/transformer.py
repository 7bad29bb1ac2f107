"""The one decoder. ``forward`` is: embed, blocks, norm, head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig
from .attention import Attention, row_mask
from .init import init_weights
from .kv_cache import KVCache
from .layers import MLP, norm_of, normalised, softcap
from .moe import MoE, Routing
from .products import linear
from .recompute import recomputed
from .research import Research
from .rope import rope_tables

# A head maps (hidden (batch, seq, dim), output weight (vocab, dim)) to logits, or to a loss computed without them.
Head = Callable[[Tensor, Tensor], Any]


def row_part(x: Tensor, dim: int, which: int, parts: int) -> Tensor:
    """Part ``which`` of rows that lie along ``dim``, split into equal ``parts``."""
    return x if parts == 1 else x.unflatten(dim, (parts, -1)).select(dim - 1, which)


class Block(nn.Module):
    """Pre-norm residual block; with ``post_norm`` each branch is normalised again before it is added."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = norm_of(config)
        self.attention = Attention(config, layer)
        self.attention_post_norm = norm_of(config) if config.post_norm else nn.Identity()
        self.mlp_norm = norm_of(config)
        self.mlp = MoE(config) if config.has_experts(layer) else MLP(config)
        self.mlp_post_norm = norm_of(config) if config.post_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.residual_scale = config.residual_scale

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        routing: Routing | None = None,
        extra_value: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        seen = self.attention_norm(x)
        extra = None if extra_value is None else extra_value(seen)
        x = x + self._scaled(self.attention_post_norm(self.attention(seen, rope, mask, cache, extra)))
        branch = self.mlp_norm(x)
        branch = self.mlp(branch, routing) if isinstance(self.mlp, MoE) else self.mlp(branch)
        return x + self._scaled(self.mlp_post_norm(branch))

    def _scaled(self, branch: Tensor) -> Tensor:
        branch = self.dropout(branch)
        return branch if self.residual_scale == 1.0 else branch * self.residual_scale


class Transformer(nn.Module):
    """Decoder-only language model.

    ``model(tokens)`` maps (batch, seq) int64 to (batch, seq, vocab) logits. ``positions`` (batch, seq) restart in each
    packed document; ``document_ids`` (batch, seq) keep packed documents apart (both are of whole rows, also where only a part
    of each row's tokens is here); ``cache`` continues a generation;
    ``head`` replaces the last step, so that a loss can be computed inside ``forward`` without full logits; ``routing``
    collects what the routers of a mixture of experts did.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size <= 0:
            raise ValueError("ModelConfig.vocab_size is 0: set it from the tokenizer before building the model")
        self.config = config
        self.checkpointing = "none"  # how gradients are made, not what the model is; set by who trains it
        self.compiled: Callable[..., Tensor] | None = None  # computes (block, *inputs); set by ``train/compile.py``
        # Where several devices share each row, (which, of how many) parts of it are here; set by ``distributed``.
        self.row_part, self.query_part = (0, 1), (0, 1)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_seq_len, config.dim) if learned else None
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = norm_of(config)
        self.research = Research(config) if config.research else None
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
        routing: Routing | None = None,
    ) -> Any:
        seq, config = tokens.shape[1], self.config
        if positions is None:
            positions = torch.arange(seq, device=tokens.device) if cache is None else cache.positions(seq)
        x = self._embed(tokens)  # (batch, seq, dim)
        if self.research is not None and self.research.smear_gate is not None:
            x = self.research.smear(x, *self._before(x, tokens, document_ids, cache))
        if self.embed_positions is not None:
            x = x + self.embed_positions(row_part(positions, -1, *self.row_part))
        rope = None
        if self.embed_positions is None:
            cos, sin = rope_tables(positions, config, x.dtype)
            rope = (row_part(cos, -2, *self.query_part), row_part(sin, -2, *self.query_part))
        masks = {
            window: self._mask(document_ids, cache, positions.shape[-1], window, x)
            for window in {config.window_of(layer) for layer in range(config.n_layers)}
        }
        stream = None if self.research is None else self.research.stream(tokens, x)
        how = self.checkpointing if cache is None and torch.is_grad_enabled() else "none"
        for number, layer in enumerate(self.layers):
            x = x if stream is None else stream.enter(number, x)
            extra_value = None if stream is None else stream.extra_value(number)
            inputs = (rope, masks[config.window_of(number)], cache)
            if how == "none":
                x = self._runner(layer, cache)(x, *inputs, routing, extra_value)
            else:
                run = layer if how == "selective" else self._runner(layer, cache)
                x = recomputed(how, layer, run, x, inputs, routing, extra_value)
        if cache is not None:
            cache.advance(seq)
        x = self.norm(x)
        if head is not None:
            return head(x, self.output_weight)
        logits = linear(x, self.output_weight)
        return softcap(logits, config.logit_softcap) if config.logit_softcap else logits

    def may_be_compiled(self, block: nn.Module) -> bool:
        """Blocks whose shapes are the batch's: not those of experts, nor those that research parts lead into."""
        return self.research is None and not isinstance(block.mlp, MoE)

    def _runner(self, block: nn.Module, cache: KVCache | None) -> Callable[..., Tensor]:
        """What computes ``block``: itself, or while training its compiled form, where there is one."""
        if self.compiled is None or cache is not None or not torch.is_grad_enabled() or not self.may_be_compiled(block):
            return block
        return partial(self.compiled, block)

    def _embed(self, tokens: Tensor) -> Tensor:
        x, scale = self.embed_tokens(tokens), self.config.embedding_scale
        if self.config.embedding_norm:
            x = normalised(x, self.config.norm_eps)
        # Rounded to the compute type first, as the checkpoints that have one were trained.
        return x if scale == 1.0 else x * torch.full((), scale, dtype=x.dtype, device=x.device)

    def _before(
        self, x: Tensor, tokens: Tensor, document_ids: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embedding of the token before each, (batch, seq, dim), and whether that belongs to the same document."""
        if cache is not None:
            ids, there = cache.before(tokens)
            return self._embed(ids), there
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        if document_ids is None:
            return before, None
        return before, F.pad(document_ids[:, 1:] == document_ids[:, :-1], (1, 0))

    @staticmethod
    def _mask(document_ids: Tensor | None, cache: KVCache | None, seq: int, window: int, x: Tensor) -> Tensor | None:
        """The mask of layers with this window: additive and in the compute type once, not made again in every layer."""
        visible = row_mask(document_ids, seq, window, x.device) if cache is None else cache.mask(seq, window)
        if visible is None:
            return None
        return torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible, float("-inf"))
