"""Expert parallelism: each rank holds some experts, and tokens travel to them and back (Lepikhin et al. 2020, arXiv:2006.16668).

No expert has a capacity and no token is dropped, so the result is that of one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model import Transformer
from ..model.moe import Experts, MoE
from .collectives import exchange, exchange_rows
from .dims import EXPERTS
from .layout import Piece
from .ranks import Ranks
from .tensor_parallel import keep_part


class SharedExperts(Experts):
    """``Experts`` of which this rank has some, in the order of ranks. Same interface, same result."""

    group: Any
    ranks_of_experts: int

    @classmethod
    def of(cls, experts: Experts, group: Any, n: int) -> SharedExperts:
        experts.__class__ = cls
        assert isinstance(experts, cls)
        experts.group, experts.ranks_of_experts = group, n
        return experts

    def forward(self, x: Tensor, weights: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        n, held = self.ranks_of_experts, self.gate_proj.weight.shape[0]
        counts = ends.diff(prepend=ends.new_zeros(1)).view(n, held).long()  # rows for each expert of each rank
        theirs = exchange(counts, self.group)  # (n, held) rows that each rank has for the experts here
        send, receive = counts.sum(1).tolist(), theirs.sum(1).tolist()
        rows = exchange_rows(x[tokens], send, receive, self.group)  # by rank, then by expert

        expert = torch.arange(held, device=x.device).repeat(n).repeat_interleave(theirs.flatten())  # of each row
        order = expert.argsort(stable=True)  # rows of one expert together
        local_ends = theirs.sum(0).cumsum(0).to(torch.int32)
        ones = torch.ones(len(rows), dtype=x.dtype, device=x.device)
        out = super().forward(rows, ones, order, local_ends)

        back = exchange_rows(out, receive, send, self.group)  # as they were sent: sorted by expert
        return torch.zeros_like(x).index_add_(0, tokens, back * weights[:, None])


def apply_expert_parallel(model: Transformer, ranks: Ranks, pieces: dict[str, Piece]) -> None:
    """Split the experts of every block among the ranks along ``inner``."""
    group = ranks.group(EXPERTS)
    if group is None:
        return
    for number, block in enumerate(model.layers):
        if not isinstance(block.mlp, MoE):
            continue
        for name in ("gate_proj", "up_proj", "down_proj"):
            full = f"layers.{number}.mlp.experts.{name}.weight"
            pieces[full] = pieces[full].split(EXPERTS, 0)
            keep_part(getattr(block.mlp.experts, name), "weight", pieces[full], ranks)
        SharedExperts.of(block.mlp.experts, group, ranks.dims.inner)
