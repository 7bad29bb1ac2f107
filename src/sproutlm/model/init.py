"""Initial weights. Each parameter is drawn from its own stream, keyed by (seed, name), so that the values depend
neither on the order of construction nor on how a parameter may later be split over devices."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from .layers import RMSNorm

# Projections that write into the residual stream start at zero: every block begins as the identity, which the public
# speedruns found worth about a tenth of the tokens, and which needs no 1/sqrt(layers) scaling.
RESIDUAL_WRITERS = ("attention.o_proj.weight", "down_proj.weight")


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one parameter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Norms 1, biases and residual writers 0, other matrices normal(0, 1/sqrt(fan_in)), embedding and head small."""
    offsets = {id(m.weight) for m in model.modules() if isinstance(m, RMSNorm) and m.offset}  # 1 + weight: 1 at zero
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(0.0 if id(parameter) in offsets else 1.0)
        elif name.endswith((".bias", ".expert_bias")) or name.endswith(RESIDUAL_WRITERS):
            parameter.zero_()
        else:
            # 0.02 keeps a tied head's first logits near zero; an untied embedding is read through a norm anyway.
            std = 0.02 if name.startswith(("embed_", "lm_head")) else 1 / math.sqrt(parameter.shape[-1])
            values = torch.empty(parameter.shape, dtype=torch.float32)
            values.normal_(0.0, std, generator=parameter_generator(seed, name))
            parameter.copy_(values)
