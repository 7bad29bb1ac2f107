"""Parameters of a shape, from the model itself built without memory (torch's meta device)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..config.model import ModelConfig
from ..model.meta import on_meta


@lru_cache(maxsize=64)
def parameters(config: ModelConfig) -> tuple[tuple[str, Tensor], ...]:
    """(name, meta tensor) of every parameter; a tied head is none."""
    return tuple(on_meta(config).named_parameters())


@dataclass(frozen=True)
class Parameters:
    """``active``: those that one token meets, all but the experts it is not sent to; ``embedding``: tables of tokens,
    positions and values (``research.py``); ``head``: an untied output matrix, 0 where it is tied; ``experts``: all routed experts together."""

    total: int
    active: int
    embedding: int
    head: int
    experts: int


def is_expert(name: str) -> bool:
    """Stacked weights of routed experts, (experts, out, in)."""
    return ".mlp.experts." in name


def is_table(name: str) -> bool:
    """Tables that are looked up in: of tokens, positions, and value embeddings."""
    return name.startswith(("embed_", "research.value_tables."))


def used_share(config: ModelConfig, name: str) -> float:
    """Share of a parameter that one token meets: ``top_k`` of the routed experts, else all of it."""
    return config.moe.top_k / config.moe.n_experts if config.moe is not None and is_expert(name) else 1.0


def count(config: ModelConfig) -> Parameters:
    sizes = {name: parameter.numel() for name, parameter in parameters(config)}
    return Parameters(
        total=sum(sizes.values()),
        active=sum(round(size * used_share(config, name)) for name, size in sizes.items()),
        embedding=sum(size for name, size in sizes.items() if is_table(name)),
        head=sum(size for name, size in sizes.items() if name.startswith("lm_head")),
        experts=sum(size for name, size in sizes.items() if is_expert(name)),
    )
