"""What makes a step fit into a place: the levers of a recipe, and their combinations ranked by what they cost.

A lever is one entry of ``LEVERS``: the recipe's key, the settings it offers, from the least change to the greatest, and what
it costs. Ranked first by what happens to the training (nothing; other rounding; another optimizer; another row length),
then by the time that it adds. Adding a lever is adding an entry, and to ``memory.py`` what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..config.model import ModelConfig
from .flops import flops, muon_flops
from .memory import Checkpointing, Compute, Setting, inference_memory, step_bytes
from .places import CARDS, USABLE, Place, cards, machine

__all__ = ["CARDS", "LEVERS", "USABLE", "Lever", "Place", "cards", "fit_training", "longest_context", "machine"]

SHORTEST_ROW = 256
# Tokens of a chunk of logits. Down to the first the loss takes no longer (one thread, 6,400 and 32,000 ids); with the second
# 2 % longer to two thirds longer (bf16, 32,000 ids).
FREE_CHUNK, SHORTEST_CHUNK = 512, 128
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "blocks")
# Share of the forward pass's time that repeating all but its products takes: measured in bf16 on a CPU (model/recompute.py);
# less in float32, and on cards.
WITHOUT_PRODUCTS = 0.65
MOST_ROWS = 1024
MOST_CURES = 5
# What happens to the training, in the order of preference.
EFFECTS = ("the same training", "other rounding", "another optimizer", "shorter rows")


@dataclass(frozen=True)
class Lever:
    """``offers``: values from the one asked for to the one that saves most; ``time``: seconds of a step with the value
    over those without, where the arithmetic says it (None: it depends on the machine)."""

    key: str
    field: str
    effect: str
    offers: Callable[[Setting], list[Any]]
    time: Callable[[ModelConfig, Setting, Setting], float | None]
    words: str | dict[str, str]  # by value where they differ

    def words_for(self, found: Setting) -> str:
        return self.words if isinstance(self.words, str) else self.words[getattr(found, self.field)]


def _halved(value: int, least: int) -> list[int]:
    found = [value]
    while found[-1] // 2 >= least and found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def _rows(setting: Setting) -> list[int]:
    found = [setting.rows]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _no_time(config: ModelConfig, asked: Setting, found: Setting) -> float | None:
    return 1.0


def _unknown_time(config: ModelConfig, asked: Setting, found: Setting) -> float | None:
    return None


def checkpointing_time(config: ModelConfig, asked: Setting, found: Setting) -> float | None:
    """The blocks' forward pass is made twice: four products of each matrix in place of three, the head's not."""
    work = flops(config, asked.seq_len)
    head = 2.0 * config.vocab_size * config.dim
    share = {"none": 0.0, "selective": WITHOUT_PRODUCTS, "blocks": 1.0}
    more = share[found.checkpointing] - share[asked.checkpointing]
    return 1.0 + more * (work.forward - head) / work.training


def _chunk_time(config: ModelConfig, asked: Setting, found: Setting) -> float | None:
    return 1.0 if found.loss_chunk >= FREE_CHUNK else None


def _muon_time(config: ModelConfig, asked: Setting, found: Setting) -> float | None:
    """What orthogonalising adds to the products of a step; the step's tokens are at least one micro-batch's."""
    tokens = max(asked.step_tokens, asked.tokens)
    return 1.0 + muon_flops(config) / (flops(config, asked.seq_len).training * tokens)


# The order is that of trying: the first costs least.
LEVERS: tuple[Lever, ...] = (
    Lever(
        "train.loss_chunk",
        "loss_chunk",
        EFFECTS[0],
        lambda s: [s.loss_chunk, *(n for n in (FREE_CHUNK, SHORTEST_CHUNK) if not 0 < s.loss_chunk <= n)],
        _chunk_time,
        "logits of fewer tokens at once",
    ),
    Lever("train.micro_batch", "rows", EFFECTS[0], _rows, _no_time, "fewer rows at once, more passes per step"),
    Lever(
        "train.streams",
        "streams",
        EFFECTS[0],
        lambda s: [s.streams, 1] if s.streams > 1 else [1],
        _unknown_time,
        "micro-batches one after the other; slower where the model is small",
    ),
    Lever(
        "train.checkpointing",
        "checkpointing",
        EFFECTS[0],
        lambda s: list(CHECKPOINTING[CHECKPOINTING.index(s.checkpointing) :]),
        checkpointing_time,
        {
            "blocks": "blocks are computed again in the backward pass",
            "selective": "blocks are computed again in the backward pass, but for their products",
        },
    ),
    Lever(
        "train.compute",
        "compute",
        EFFECTS[1],
        lambda s: [s.compute] if s.compute == "float32" else [s.compute, "float32"],
        _unknown_time,
        "no rounded copies of the weights; slower where bf16 or fp16 has units of its own",
    ),
    Lever(
        "optimizer.state_dtype",
        "state_dtype",
        EFFECTS[1],
        lambda s: [s.state_dtype] if s.state_dtype == "int8" else ["float32", "int8"],
        _unknown_time,
        "AdamW's averages in a byte each; slower on CPUs",
    ),
    Lever(
        "optimizer.name",
        "optimizer",
        EFFECTS[2],
        lambda s: ["adamw", "muon"] if s.optimizer == "adamw" else [s.optimizer],
        _muon_time,
        "half the state of the blocks; rates are Muon's own",
    ),
    Lever(
        "data.seq_len",
        "seq_len",
        EFFECTS[3],
        lambda s: _halved(s.seq_len, min(SHORTEST_ROW, s.seq_len)),
        _no_time,
        "the model sees less context while it learns",
    ),
)


def _cost(config: ModelConfig, asked: Setting, found: Setting) -> tuple[int, int, int, float]:
    """Sorting key: the gravest effect, all effects together, how many unknown times, the known ones as a factor."""
    gravest, together, unknown, factor = 0, 0, 0, 1.0
    for lever in _moved(asked, found):
        effect, time = EFFECTS.index(lever.effect), lever.time(config, asked, found)
        gravest, together = max(gravest, effect), together + effect
        unknown += time is None
        factor *= time or 1.0
    return gravest, together, unknown, factor


def _moved(asked: Setting, found: Setting) -> list[Lever]:
    return [lever for lever in LEVERS if getattr(asked, lever.field) != getattr(found, lever.field)]


def _combinations(asked: Setting) -> Iterator[Setting]:
    """Every combination of the levers but rows, which are sought for each."""
    levers = [lever for lever in LEVERS if lever.field != "rows"]
    for values in product(*(lever.offers(asked) for lever in levers)):
        yield replace(asked, **{lever.field: value for lever, value in zip(levers, values, strict=True)})


def fit_training(config: ModelConfig, asked: Setting, room: int, most_rows: int = MOST_ROWS) -> dict[str, Any]:
    """``settings``: recipe keys to change so that a step fits, empty if it fits as asked, None if nothing here helps;
    ``micro_batch_at_most``: the largest power of two of rows that fits with them; ``cures``: up to five ways, the best
    first, none where it fits as asked, each with ``settings``, ``bytes``, ``effect``, ``time`` (factor) and ``words``."""
    needed = step_bytes(config, asked)
    if needed <= room:
        return {
            "settings": {},
            "micro_batch_at_most": _most(config, asked, room, most_rows),
            "bytes": needed,
            "cures": [],
        }
    fitting = [found for one in _combinations(asked) if (found := _with_rows(config, one, room)) is not None]
    if not fitting:
        return {"settings": None, "micro_batch_at_most": 0, "bytes": needed, "cures": []}
    ranked = _worth_naming(
        asked, sorted(fitting, key=lambda found: (*_cost(config, asked, found), len(_moved(asked, found)), -found.rows))
    )
    best = ranked[0]
    return {
        "settings": changes(asked, best),
        "micro_batch_at_most": _most(config, best, room, most_rows),
        "bytes": step_bytes(config, best),
        "cures": [_cure(config, asked, found) for found in ranked[:MOST_CURES]],
    }


def _with_rows(config: ModelConfig, setting: Setting, room: int) -> Setting | None:
    """The most rows, by halving, with which ``setting`` fits; None if not even one row does."""
    if step_bytes(config, replace(setting, rows=1)) > room:
        return None
    return next(found for rows in _rows(setting) if step_bytes(config, found := replace(setting, rows=rows)) <= room)


def _most(config: ModelConfig, setting: Setting, room: int, most_rows: int) -> int:
    rows = 1
    while rows * 2 <= most_rows and step_bytes(config, replace(setting, rows=rows * 2)) <= room:
        rows *= 2
    return rows


def _worth_naming(asked: Setting, ranked: list[Setting]) -> list[Setting]:
    """Without those that move every lever of a better one, and more."""
    named: list[Setting] = []
    for found in ranked:
        keys = {lever.key for lever in _moved(asked, found)}
        if not any({lever.key for lever in _moved(asked, other)} <= keys for other in named):
            named.append(found)
    return named


def _cure(config: ModelConfig, asked: Setting, found: Setting) -> dict[str, Any]:
    gravest, _, unknown, factor = _cost(config, asked, found)
    return {
        "settings": changes(asked, found),
        "bytes": step_bytes(config, found),
        "effect": EFFECTS[gravest],
        "time": None if unknown else round(factor, 3),
        "words": "; ".join(lever.words_for(found) for lever in _moved(asked, found)),
    }


def changes(asked: Setting, found: Setting) -> dict[str, Any]:
    """Recipe keys and their new values."""
    return {lever.key: getattr(found, lever.field) for lever in _moved(asked, found)}


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
