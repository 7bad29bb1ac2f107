"""The parts behind ``research:`` in a model's config, which no other program's models have.

With x0 the embeddings as they enter the first block, and sigma the sigmoid:

    smear               embedding of token t  +=  lambda * sigma(w . e_t) * embedding of token t - 1 of the same document
    unet_skips          x  +=  s_i * output of block n - 1 - i              before block i of the second half
    residual, x0        x   =  lambda_i * x + mu_i * x0                     before block i
    value_embeddings    values of head h  +=  2 sigma(w_h . e) * table_i[token]      in every second block, the last included

e is a token's vector, normalised, of which a gate reads the first ``GATE_CHANNELS`` channels. The formulas are those of the
public GPT-2 speedruns (github.com/KellerJordan/modded-nanogpt, github.com/karpathy/nanochat). A model with all of them
computes at the start what it computes without: lambda_i is 1, the other scalars and gates are 0, and what the tables put
into the values meets an output projection of zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig

GATE_CHANNELS = 16


class Research(nn.Module):
    """Parameters of the parts that ``config.research`` names; what is not named is None, and leaves no operation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        parts, layers, kv_width = config.research, config.n_layers, config.n_kv_heads * config.head_dim
        self.kv_heads, self.norm_eps = config.n_kv_heads, config.norm_eps
        self.skip_from, self.value_layers = config.skip_from, config.value_layers
        self.gate_channels = min(GATE_CHANNELS, config.dim)

        def vector(part: str, size: int, value: float) -> nn.Parameter | None:
            return nn.Parameter(torch.full((size,), value)) if part in parts else None

        self.residual_lambdas = vector("residual_lambdas", layers, 1.0)
        self.x0_lambdas = vector("x0_lambdas", layers, 0.0)
        self.skip_weights = vector("unet_skips", len(self.skip_from), 0.0)
        self.smear_lambda = vector("smear", 1, 0.0)
        self.smear_gate = vector("smear", self.gate_channels, 0.0)
        # By layer: (vocab, kv_heads * head_dim). Not inside the blocks, whose matrices are the optimizer's to orthogonalise.
        tables = {str(layer): nn.Embedding(config.vocab_size, kv_width) for layer in self.value_layers}
        self.value_tables = nn.ModuleDict(tables) if tables else None
        gates = torch.zeros(len(tables), config.n_kv_heads, self.gate_channels)
        self.value_gates = nn.Parameter(gates) if tables else None

    def smear(self, x: Tensor, before: Tensor, same: Tensor | None) -> Tensor:
        """Mix each token's embedding with that of the token before it, both (batch, seq, dim).

        ``same`` (batch, seq) bool: that token is there, and in the same document; None where ``before`` is 0 if it is not.
        """
        assert self.smear_lambda is not None and self.smear_gate is not None
        seen = x[..., : self.gate_channels]
        seen = F.rms_norm(seen, seen.shape[-1:], None, self.norm_eps)
        weight = self.smear_lambda * torch.sigmoid(seen @ self.smear_gate)[..., None]  # (batch, seq, 1)
        if same is not None:
            weight = weight * same[..., None]
        return torch.addcmul(x, weight, before)

    def stream(self, tokens: Tensor, x0: Tensor) -> Stream:
        return Stream(self, tokens, x0)


class Stream:
    """One forward pass: what later blocks need of the embeddings and of earlier blocks. (Passes run side by side in
    threads, so none of it may be kept in the module.)"""

    def __init__(self, parts: Research, tokens: Tensor, x0: Tensor) -> None:
        self.parts, self.tokens, self.x0 = parts, tokens, x0
        self.outputs: dict[int, Tensor] = {}  # of blocks that a later one reads
        # Taken apart once: one gradient for the vector, not one per block.
        self.residual = None if parts.residual_lambdas is None else parts.residual_lambdas.unbind()
        self.first = None if parts.x0_lambdas is None else parts.x0_lambdas.unbind()
        skips = () if parts.skip_weights is None else parts.skip_weights.unbind()
        self.skips = dict(zip(parts.skip_from, skips, strict=True))
        gates = () if parts.value_gates is None else parts.value_gates.unbind()  # each (kv_heads, channels)
        self.gates = dict(zip(parts.value_layers, gates, strict=True))

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """What block ``layer`` reads, given what the block before it wrote, both (batch, seq, dim)."""
        if layer in self.skips:
            x = torch.addcmul(x, self.skips[layer], self.outputs.pop(self.parts.skip_from[layer]))
        elif layer - 1 in self.parts.skip_from.values():
            self.outputs[layer - 1] = x
        if self.residual is not None:
            x = x * self.residual[layer]
        if self.first is not None:
            x = torch.addcmul(x, self.first[layer], self.x0)
        return x

    def extra_value(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """Maps what attention reads, (batch, seq, dim), to what is added to its values, (batch, seq, kv_heads, head_dim);
        None for a block without a table."""
        tables, gate = self.parts.value_tables, self.gates.get(layer)
        if tables is None or gate is None:
            return None
        value = tables[str(layer)](self.tokens).unflatten(-1, (self.parts.kv_heads, -1))
        return lambda seen: value * (2 * torch.sigmoid(F.linear(seen[..., : gate.shape[-1]], gate)))[..., None]
