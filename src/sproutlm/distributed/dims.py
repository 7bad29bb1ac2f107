"""The axes along which ranks differ, and their sizes.

    world = replicate * outer * inner * cp * tp        the last changes fastest: tensor-parallel ranks are neighbours

``replicate``, ``outer`` and ``inner`` are data-parallel: each rank has rows of its own. One copy of the weights is shared by the
ranks along ``outer`` and ``inner`` (FSDP2, where ``shard`` is more than 1); experts are split along ``inner`` first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config.parallel import ParallelConfig
from ..errors import SproutError

AXES = ("replicate", "outer", "inner", "cp", "tp")
DATA = AXES[:3]
SHARD = ("outer", "inner")
EXPERTS = ("inner",)


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of the axes; ``shard``: ranks that share one copy of the weights, 1 = each has its own."""

    replicate: int = 1
    outer: int = 1
    inner: int = 1
    cp: int = 1
    tp: int = 1
    shard: int = 1

    @classmethod
    def of(cls, asked: ParallelConfig, world: int) -> ParallelDims:
        """What a recipe asks for, among ``world`` ranks; a ``SproutError`` where that cannot be."""
        row = asked.cp * asked.tp
        dp = asked.dp or max(1, world // row)
        if dp * row != world:
            parts = f"dp={asked.dp or 'all'} * cp={asked.cp} * tp={asked.tp}"
            least = f"{dp * row} processes" if asked.dp else f"a multiple of {row} processes"
            raise SproutError(
                f"parallel: {parts} does not fit {world} process{'es' if world > 1 else ''}; start {least} "
                "(sprout launch RECIPE prints the line), or change the recipe's parallel section"
            )
        shard = asked.shard or dp
        among = shard if shard > 1 else dp
        if dp % shard or among % asked.ep:
            key, value, of = ("shard", shard, dp) if dp % shard else ("ep", asked.ep, among)
            raise SproutError(
                f"parallel.{key}={value} does not divide the {of} ranks it would split ({world} processes); use a divisor"
            )
        replicate = dp // shard if shard > 1 else 1
        return cls(replicate, among // asked.ep, asked.ep, asked.cp, asked.tp, shard)

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def size(self, axes: tuple[str, ...]) -> int:
        return math.prod(getattr(self, axis) for axis in axes)

    @property
    def world(self) -> int:
        return self.size(AXES)

    def index(self, rank: int, axes: tuple[str, ...]) -> int:
        """Place of ``rank`` along ``axes`` (in the order of ``AXES``), counted with the last one fastest."""
        place, after = 0, 1
        for axis in reversed(AXES):
            size = getattr(self, axis)
            if axis in axes:
                place += rank % size * after
                after *= size
            rank //= size
        return place

    def words(self) -> str:
        """For a person: what is split how."""
        dp = self.size(DATA)
        how = "DDP" if self.shard == 1 else "FSDP2" if self.replicate == 1 else f"HSDP, {self.replicate} copies"
        parts = [f"dp={dp} ({how})"] if dp > 1 else []
        parts += [f"{name}={size}" for name, size in (("cp", self.cp), ("tp", self.tp), ("ep", self.inner)) if size > 1]
        return " ".join(parts) or "one process"
