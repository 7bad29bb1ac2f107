"""Initial weights. Each parameter is drawn from its own stream, keyed by (seed, name), so that the values depend
neither on the order of construction nor on how a parameter may later be split over devices."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
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
    """Fill every parameter with its first value."""
    values = first_values(model, seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(values(name))


def first_values(model: nn.Module, seed: int) -> Callable[[str], Tensor]:
    """First value of each parameter by name, float32; ``model`` may have shapes only. Norms 1, biases and residual writers 0, other
    matrices normal(0, 1/sqrt(fan_in)), embedding and head small; lambdas and gates of ``research.py`` so that they change
    nothing."""
    offsets = {id(m.weight) for m in model.modules() if isinstance(m, RMSNorm) and m.offset}  # 1 + weight: 1 at zero
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    at_zero = {name for name, parameter in model.named_parameters() if id(parameter) in offsets}

    def value(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith("norm.weight"):
            return torch.full(shape, 0.0 if name in at_zero else 1.0)
        if name == "research.residual_lambdas":
            return torch.ones(shape)
        if name.endswith((".bias", ".expert_bias", *RESIDUAL_WRITERS)) or starts_at_zero(name):
            return torch.zeros(shape)
        # 0.02 keeps a tied head's first logits near zero; an untied embedding is read through a norm anyway.
        std = 0.02 if name.startswith(("embed_", "lm_head")) else 1 / math.sqrt(shape[-1])
        return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=parameter_generator(seed, name))

    return value


def starts_at_zero(name: str) -> bool:
    """Lambdas and gates of ``research.py`` that add nothing at the start."""
    return name.startswith("research.") and not has_vocabulary_rows(name)


def has_vocabulary_rows(name: str) -> bool:
    """Whether a parameter has a row for each id: embedding, untied head, tables of value embeddings."""
    return name in ("embed_tokens.weight", "lm_head.weight") or name.startswith("research.value_tables.")


def resize_vocab(
    state: dict[str, Tensor], config: ModelConfig, written_as: Mapping[int, Sequence[int]]
) -> tuple[dict[str, Tensor], ModelConfig]:
    """A model's ``state`` (by our parameter names) with rows for new tokens; every other value stays bit for bit.

    ``written_as``: id of each new token -> the ids that its text was written as before. Its row in the embedding, and in
    an untied head, is the mean of theirs in float32: a token begins as what the model read there until now. Where there
    are none, and for ids in between that no token has, it is the mean of all rows. Ids below ``config.vocab_size``
    (reserved tokens, spare rows) are filled in place. (The mean as a start: Hewitt 2021, "Initializing new word
    embeddings for pretrained language models".)
    """
    before = config.vocab_size
    size = max([before, *(id_ + 1 for id_ in written_as)])
    resized = dict(state)
    for name in filter(has_vocabulary_rows, state):
        old = state[name].to(torch.float32)
        rows = torch.empty(size, old.shape[1], dtype=torch.float32)
        rows[:before] = old
        rows[before:] = old.mean(0)
        for id_, ids in written_as.items():
            known = [i for i in ids if 0 <= i < before]
            rows[id_] = old[known].mean(0) if known else old.mean(0)
        resized[name] = rows
    return resized, config.model_copy(update={"vocab_size": size})
