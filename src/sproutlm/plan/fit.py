"""Where a model fits: cards by their memory and this machine's, and the settings that make it fit.

Only settings that exist are named, those that change least first: fewer rows at once (the same training, more passes per
step), float32 throughout (no rounded copies of the weights; slower, the same result or better), shorter rows, Muon in
place of AdamW (half the state of the blocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config.model import ModelConfig
from .memory import Compute, Optimizer, Setting, inference_memory, training_memory

# GiB, as cards are sold. Of each a part stays free: what the display and other programs hold, and gaps between blocks.
CARDS = (4, 8, 12, 16, 24, 40, 80, 141)
USABLE = 0.92
SHORTEST_ROW = 256
MOST_ROWS = 1024


@dataclass(frozen=True)
class Place:
    """A card or a machine with ``room`` bytes that a run may take."""

    name: str
    room: int


def cards() -> list[Place]:
    return [Place(f"{gib} GB", int(gib * 2**30 * USABLE)) for gib in CARDS]


def machine(total: int, container: int | None) -> Place:
    """This machine's memory: all of it but what others need, or what its container may still take."""
    room = int(total * USABLE)
    return Place(f"CPU {total / 2**30:.0f} GB", room if container is None else min(room, container))


def fit_training(config: ModelConfig, asked: Setting, room: int, most_rows: int = MOST_ROWS) -> dict[str, Any]:
    """``settings``: recipe keys to change so that a step fits, empty if it fits as asked, None if nothing here helps;
    ``micro_batch_at_most``: the largest power of two of rows that fits with them."""
    for setting in _candidates(asked):
        if sum(training_memory(config, setting).values()) <= room:
            rows = 1
            while rows * 2 <= most_rows and _bytes(config, replace(setting, rows=rows * 2)) <= room:
                rows *= 2
            return {"settings": _changes(asked, setting), "micro_batch_at_most": rows, "bytes": _bytes(config, setting)}
    return {"settings": None, "micro_batch_at_most": 0, "bytes": _bytes(config, asked)}


def _bytes(config: ModelConfig, setting: Setting) -> int:
    return sum(training_memory(config, setting).values())


def _candidates(asked: Setting) -> Iterator[Setting]:
    """``asked`` first, then what changes more and more."""
    optimizers: list[Optimizer] = [asked.optimizer] if asked.optimizer == "muon" else [asked.optimizer, "muon"]
    computes: list[Compute] = [asked.compute] if asked.compute == "float32" else [asked.compute, "float32"]
    for optimizer in optimizers:
        for seq_len in _halved(asked.seq_len, min(SHORTEST_ROW, asked.seq_len)):
            for compute in computes:
                for rows in _halved(asked.rows, 1):
                    yield replace(asked, rows=rows, seq_len=seq_len, compute=compute, optimizer=optimizer)


def _halved(value: int, least: int) -> Iterator[int]:
    while value >= least:
        yield value
        value //= 2


def _changes(asked: Setting, found: Setting) -> dict[str, Any]:
    pairs = {
        "train.micro_batch": (asked.rows, found.rows),
        "train.compute": (asked.compute, found.compute),
        "data.seq_len": (asked.seq_len, found.seq_len),
        "optimizer.name": (asked.optimizer, found.optimizer),
    }
    return {key: new for key, (old, new) in pairs.items() if new != old}


def longest_context(config: ModelConfig, rows: int, room: int, compute: Compute) -> int:
    """Tokens that ``rows`` answers may have each, prompt included, in steps of 64 up to ``max_seq_len``; 0 = none fit."""

    def fits(steps: int) -> bool:
        context = min(64 * steps, config.max_seq_len)
        return sum(inference_memory(config, rows, context, compute).values()) <= room

    low, high = 0, -(-config.max_seq_len // 64)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return min(64 * low, config.max_seq_len)
