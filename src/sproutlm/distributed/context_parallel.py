"""Context parallelism by exchanging heads (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509).

Each rank has a part of every row. Only attention looks along a row: there each rank gets some heads of whole rows, and gives
back all heads of its part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..model import Transformer
from .collectives import heads_to_rows, rows_to_heads
from .ranks import Ranks

CP = ("cp",)


class Exchanged:
    """In place of ``attend``: queries, keys and values are (batch, heads, seq / n, head_dim)."""

    def __init__(self, attend: Callable[..., Tensor], group: Any) -> None:
        self.attend, self.group = attend, group

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        q, k, v = (heads_to_rows(x, self.group) for x in (q, k, v))
        return rows_to_heads(self.attend(q, k, v, *how), self.group)


def apply_context_parallel(model: Transformer, ranks: Ranks) -> None:
    group = ranks.group(CP)
    if group is None:
        return
    block: Any
    for block in model.layers:
        block.attention.attend = Exchanged(block.attention.attend, group)
