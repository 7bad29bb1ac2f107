"""A tiny model with random weights."""

from __future__ import annotations

import torch

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer


def random_model(vocab_size: int, seed: int = 1, **shape: float) -> Transformer:
    """Weights large enough that the greedy choice is never a near tie."""
    sizes: dict[str, float] = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 96} | shape
    model = Transformer(ModelConfig(vocab_size=vocab_size, **sizes)).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()
