"""Floating-point operations per token; a multiplication and its addition count as two.

    forward  = 2 * (entries of every matrix the token is multiplied with) + sum over layers of 4 * heads * head_dim * keys
    training = 3 * forward       the backward pass makes two products of each one

(Kaplan et al. 2020, arXiv:2001.08361, table 1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B.) The matrices are the
projections, the router, the ``top_k`` experts a token is sent to, shared experts, and the head, tied or not; looking up
an embedding is no product. ``keys`` is the mean over a row of the keys that its tokens see: (T + 1) / 2 for a causal row of
T, less where a window ends it. Norms, rotations, activations and the softmax are left out: about one in a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..config.model import ModelConfig
from ..train.optim import is_block_matrix
from .count import is_table, parameters, used_share


@dataclass(frozen=True)
class Flops:
    """Per token, at a context of ``context`` tokens: ``forward`` and ``training`` are means over a row of that length;
    ``attention`` is the part of ``forward`` that grows with it; ``next_token`` is the forward pass of one new token
    after ``context`` cached ones."""

    context: int
    forward: float
    attention: float
    training: float
    next_token: float


def matrix_entries(config: ModelConfig) -> float:
    """Entries of all matrices that one token is multiplied with."""
    total = 0.0
    for name, parameter in parameters(config):
        a_head_too = name.startswith("embed_tokens") and config.tie_embeddings
        looked_up = is_table(name) and not a_head_too
        if parameter.ndim >= 2 and not looked_up:
            total += parameter.numel() * used_share(config, name)
    return total


def mean_keys(context: int, window: int = 0) -> float:
    """Keys that a token of a causal row sees, averaged over the row; ``window``: at most so many, 0 = all."""
    seen = min(window, context) if window else context
    return (seen * (seen + 1) / 2 + (context - seen) * seen) / context


def attention_flops(config: ModelConfig, context: int, *, masked: bool = True) -> float:
    """Scores and their products with the values, per token, over all layers.

    ``masked``: only keys that a token sees; without, a whole row, which is what a kernel that masks afterwards computes.
    """
    width = 4 * config.n_heads * config.head_dim
    windows = [config.window_of(layer) for layer in range(config.n_layers)]
    return sum(width * (mean_keys(context, window) if masked else context) for window in windows)


def flops(config: ModelConfig, context: int) -> Flops:
    products, attention = 2 * matrix_entries(config), attention_flops(config, context)
    windows = [config.window_of(layer) for layer in range(config.n_layers)]
    last = sum(4 * config.n_heads * config.head_dim * min(context + 1, window or context + 1) for window in windows)
    forward = products + attention
    return Flops(context, forward, attention, 3 * forward, products + last)


def muon_flops(config: ModelConfig) -> float:
    """Of one update by Muon: five iterations, each a Gram matrix (m^2 n), its square (m^3) and a product with it (m^2 n) of
    every m x n matrix of the blocks, m the shorter side."""
    total = 0.0
    for name, parameter in parameters(config):
        if is_block_matrix(name, parameter):
            *stack, rows, cols = parameter.shape
            short, long = min(rows, cols), max(rows, cols)
            total += prod(stack) * 5 * 2 * (2 * short * short * long + short**3)
    return total
