"""Whether ranks that should hold the same do, who spoilt a step, and garbage collected by all at the same moment."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import SproutError
from .layout import Layout, Piece
from .ranks import Ranks

COLLECT_EVERY = 50  # steps


def check_agreement(layout: Layout, tensors: Mapping[str, Tensor], pieces: Mapping[str, Piece], step: int) -> None:
    """Refuse to go on where ranks that hold the same part of a tensor hold other values of it, bit for bit. For debugging:
    every tensor is read, and a checksum of each goes to all ranks."""
    ranks = layout.ranks
    if ranks.size == 1:
        return
    mine = {}
    for name, tensor in tensors.items():
        part = pieces[name].bounds(ranks) if name in pieces else [(0, n) for n in tensor.shape]
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        mine[name] = (tuple(part), zlib.crc32(values.numpy().tobytes()))
    seen: dict[tuple[str, object], tuple[int, int]] = {}
    apart = []
    for rank, found in enumerate(ranks.gathered(mine)):
        for name, (part, checksum) in found.items():
            first, expected = seen.setdefault((name, part), (rank, checksum))
            if checksum != expected:
                apart.append(f"{name} of rank {rank} is not that of rank {first}")
    if apart:
        more = f" and {len(apart) - 5} more" if len(apart) > 5 else ""
        raise SproutError(
            f"step {step}: ranks that should agree do not: {'; '.join(apart[:5])}{more}. Go back to a checkpoint before; a "
            "card or its memory may be faulty, or code of your own changes weights on some ranks only"
        )


def suspects(ranks: Ranks, finite: bool, rows: Sequence[int]) -> str:
    """The rows of each rank whose own loss is not finite; where all are, as when a gradient alone overflows, of all ranks."""
    found = ranks.gathered((finite, list(rows)[:16]))
    named = [rank for rank, (well, _) in enumerate(found) if not well] or range(len(found))
    whose = "rank {} " if ranks.size > 1 else ""
    return "; ".join(whose.format(rank) + "rows " + ", ".join(map(str, found[rank][1])) for rank in named)


@contextmanager
def garbage_kept(ranks: Ranks) -> Iterator[None]:
    """Python's collector off: on its own it would stop each rank at another step, and all others would wait for that one."""
    if ranks.size == 1 or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect_together(ranks: Ranks, step: int) -> None:
    """What the collector would have done meanwhile, on all ranks at once."""
    if ranks.size > 1 and step % COLLECT_EVERY == 0:
        gc.collect(1)
