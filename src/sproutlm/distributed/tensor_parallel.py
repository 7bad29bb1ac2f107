"""Tensor and sequence parallelism (Shoeybi et al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198).

Between attention and MLP each rank has a part of every row, so embedding, norms, residual stream, head and loss are split
along the row and their weights are whole. Attention and the MLP put rows together, compute a share of heads or channels, and
give each rank its part of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..model import Transformer
from ..model.layers import MLP
from ..model.products import Linear, linear
from .collectives import gather_row, sum_row
from .layout import Piece
from .ranks import Ranks

TP = ("tp",)


class RowParallel(Linear):
    """A linear layer whose input channels are split: the sum over ranks, then the bias, on one's part of each row."""

    @classmethod
    def of(cls, layer: nn.Linear, group: Any) -> RowParallel:
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.group = group
        return layer

    group: Any

    def forward(self, x: Tensor) -> Tensor:
        out = sum_row(linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


def keep_part(module: nn.Module, name: str, piece: Piece, ranks: Ranks) -> None:
    """Put this rank's part in place of parameter ``name`` of ``module``."""
    whole: Tensor = getattr(module, name)
    setattr(module, name, nn.Parameter(piece.cut(whole.detach(), ranks).clone()))


def apply_tensor_parallel(model: Transformer, ranks: Ranks, pieces: dict[str, Piece]) -> None:
    """Split the heads and MLPs of every block among the ranks along ``tp``."""
    group = ranks.group(TP)
    if group is None:
        return
    split = _Splitter(ranks, pieces)
    block: Any
    for number, block in enumerate(model.layers):
        attention = block.attention
        for name in ("q_proj", "k_proj", "v_proj"):
            split.rows(getattr(attention, name), f"layers.{number}.attention.{name}")
        split.columns(attention.o_proj, f"layers.{number}.attention.o_proj", group)
        attention.n_heads //= ranks.dims.tp
        attention.n_kv_heads //= ranks.dims.tp
        attention.register_forward_pre_hook(_together(group))
        if isinstance(block.mlp, MLP):  # experts take tokens as they lie: nothing to split
            for name in ("gate_proj", "up_proj"):
                if getattr(block.mlp, name) is not None:
                    split.rows(getattr(block.mlp, name), f"layers.{number}.mlp.{name}")
            split.columns(block.mlp.down_proj, f"layers.{number}.mlp.down_proj", group)
            block.mlp.register_forward_pre_hook(_together(group))


def _together(group: Any) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Before a module: the parts of each row put together in its first argument."""
    return lambda module, args: (gather_row(args[0], group), *args[1:])


class _Splitter:
    def __init__(self, ranks: Ranks, pieces: dict[str, Piece]) -> None:
        self.ranks, self.pieces = ranks, pieces

    def rows(self, layer: nn.Linear, name: str) -> None:
        """Output channels."""
        for part in ("weight", "bias") if layer.bias is not None else ("weight",):
            self._keep(layer, part, f"{name}.{part}", 0)

    def columns(self, layer: nn.Linear, name: str, group: Any) -> None:
        """Input channels; the bias stays whole."""
        self._keep(layer, "weight", f"{name}.weight", 1)
        RowParallel.of(layer, group)

    def _keep(self, layer: nn.Module, part: str, name: str, dim: int) -> None:
        self.pieces[name] = self.pieces[name].split(TP, dim)
        keep_part(layer, part, self.pieces[name], self.ranks)
