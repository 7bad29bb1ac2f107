"""Tiny random models and texts: small enough for a test, random enough that no part can hide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..model import Transformer
from .cases import VOCAB, Case

NORMS = ("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
TABLES = ("embed_tokens", "embed_positions", "wte", "wpe")


@torch.no_grad()
def randomise(module: nn.Module, norm_offset: bool = False, seed: int = 7) -> None:
    """Every parameter random and none zero or one; small embeddings, so that the norms' epsilon shows.

    ``norm_offset``: norms multiply by 1 + weight, so that their weights lie around zero.
    """
    low, high = (-0.5, 0.5) if norm_offset else (0.5, 1.5)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith(NORMS):
            parameter.uniform_(low, high, generator=generator)
        else:
            std = 0.1 if any(table in name for table in TABLES) else 0.2
            parameter.normal_(0, std, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith(
            "e_score_correction_bias"
        ):  # what steers the choice of experts is no parameter in transformers
            buffer.normal_(0, 0.2, generator=generator)


def random_model(case: Case, config: ModelConfig | None = None) -> Transformer:
    """A model of this shape whose every parameter is random, in eval mode."""
    model = Transformer(config or case.config()).eval()
    randomise(model, model.config.norm_offset)
    return model


def random_tokens(rows: int, seq: int, seed: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (rows, seq), generator=torch.Generator().manual_seed(seed))


def learnable_tokens(rows: int, seq: int, seed: int, vocab: int = VOCAB) -> Tensor:
    """Rows in which the next token follows from the one before, but for one in eight: something to learn in 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, vocab, (rows, seq), generator=generator)
    surprise = torch.rand(rows, seq, generator=generator) < 1 / 8
    out = noise.clone()
    for t in range(1, seq):
        out[:, t] = torch.where(surprise[:, t], noise[:, t], (out[:, t - 1] * 5 + 3) % vocab)
    return out


def packed(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Positions and document ids of documents laid one after another, each (1, seq)."""
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return positions, ids
