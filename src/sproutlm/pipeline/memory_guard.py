"""What a run does about memory: it refuses to begin where it cannot end, and says what would help where a card is full."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..config.model import ModelConfig
from ..config.schema import Recipe
from ..errors import OutOfMemory
from ..plan.fit import USABLE, fit_training
from ..plan.limits import Limit, tightest
from ..plan.memory import Compute, Setting, step_bytes
from .dry_run import config_of
from .split import setting_of

FORCE = "train.force_memory"


def limit_here() -> Limit:
    """The least limit on this process's memory: machine, control groups, ``SPROUT_MEMORY_LIMIT``."""
    import psutil

    return tightest(psutil.Process().memory_info().rss, psutil.virtual_memory().total)


def refuse_too_large(recipe: Recipe, device: torch.device, config: ModelConfig | None = None) -> None:
    """``OutOfMemory`` where the plan of a run on a CPU exceeds what this process may have: the kernel would end it without
    a word. Where ``compute: auto`` is still open the smaller of both counts. ``train.force_memory: true`` begins all the same."""
    if device.type != "cpu" or recipe.train.force_memory or not recipe.parallel.whole:
        return  # (what a rank needs that holds a part of the model is not planned yet)
    if config is None and recipe.model is None:
        return  # the shape is that of init_from: looked at again once the model is known
    shape = config or config_of(recipe)
    open_choice: tuple[Compute, ...] = (
        ("float32", "bf16") if recipe.train.compute == "auto" else (recipe.train.compute,)
    )
    settings = [setting_of(recipe, compute, "cpu", shape) for compute in open_choice]
    setting = min(settings, key=lambda one: step_bytes(shape, one))
    limit, needed = limit_here(), step_bytes(shape, setting)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on this host, each with as much
    if needed * processes <= limit.room:
        return
    raise OutOfMemory(
        f"{recipe.name}: a step takes about {gigabytes(needed)}{f' in each of {processes} processes' if processes > 1 else ''}, more than the {gigabytes(limit.room)} that {limit.what} "
        f"leaves it; {_advice(shape, setting, limit.room)}\n{FORCE}=true begins all the same"
    )


@contextmanager
def full_card_explained(recipe: Recipe, config: ModelConfig, device: torch.device) -> Iterator[None]:
    """An allocation that failed while training, as ``OutOfMemory`` with the measured peak and the cures ranked."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        if not known and "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise  # a fault of another kind
        raise OutOfMemory(explain(recipe, config, device, error)) from error


def explain(recipe: Recipe, config: ModelConfig, device: torch.device, error: Exception) -> str:
    compute: Compute = "bf16" if recipe.train.compute == "auto" else recipe.train.compute
    setting = setting_of(recipe, compute, "cpu" if device.type == "cpu" else "card", config)
    needed = step_bytes(config, setting)
    if device.type == "cuda" and torch.cuda.is_available():
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        measured = f"the most allocated was {gigabytes(peak)} of {gigabytes(total)}"
        room = int(total * USABLE)
    else:
        room = limit_here().room if device.type == "cpu" else needed
        measured = f"the allocator said: {_first_line(error)}"
    # Where the estimate said that it fits, it was too low by what is not known: then a tenth less is asked for.
    room = min(room, int(needed * 0.9))
    return (
        f"{recipe.name}: out of memory on {device}; {measured}; a step was estimated at {gigabytes(needed)}. "
        f"Checkpoints already saved are intact; {_advice(config, setting, room)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _advice(config: ModelConfig, setting: Setting, room: int) -> str:
    cures = fit_training(config, setting, room)["cures"]
    if cures:
        return "what makes it fit, the cheapest first:\n" + "\n".join(cure_lines(cures))
    least = step_bytes(config, replace(setting, rows=1, streams=1))
    return (
        f"no setting makes it fit (one row at once still takes {gigabytes(least)}): choose a smaller model "
        "(model.dim, model.n_layers), or a machine with more memory (see: sprout plan)"
    )


def cure_lines(cures: Sequence[dict[str, Any]]) -> list[str]:
    """Ranked cures with their numbers, one line each."""
    lines = []
    for number, cure in enumerate(cures, start=1):
        keys = " ".join(f"{key}={value}" for key, value in cure["settings"].items())
        time = "time not known beforehand" if cure["time"] is None else _time(cure["time"])
        lines.append(f"  {number}. {keys}: {gigabytes(cure['bytes'])}, {cure['effect']}, {time} ({cure['words']})")
    return lines


def _time(factor: float) -> str:
    return "about the same time" if factor < 1.005 else f"{factor - 1:.0%} more arithmetic"


def gigabytes(n: float) -> str:
    return f"{n / 2**30:.2f} GB"
