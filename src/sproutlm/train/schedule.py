"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from ..config.schema import ScheduleConfig


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Steps of linear warm-up; a share below 1 is of the run; never more than half of the run."""
    steps = config.warmup * total if config.warmup < 1 else config.warmup
    return min(int(round(steps)), total // 2)


def multiplier(config: ScheduleConfig, step: int, total: int) -> float:
    """Share of the peak rate at ``step`` (0 .. total-1): rises to exactly 1, never above; ``final`` at the last step."""
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "wsd":
        start = min(max(warmup, total - int(round(config.decay * total))), total - 1)  # the last step is always `final`
    else:
        start = warmup
    if step < start:
        return 1.0
    span = total - 1 - start
    progress = min(1.0, (step - start) / span) if span > 0 else 1.0
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.final + (1 - config.final) * shape
