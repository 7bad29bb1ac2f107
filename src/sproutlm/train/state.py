"""What the next step of a run depends on beside tensors, and what a finished run gives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from .loss_scale import LossScale


@dataclass
class TrainState:
    """Everything beside tensors that the next step depends on. Data order and dropout follow from ``step`` alone."""

    step: int = 0
    tokens: int = 0
    window_loss: float = 0.0  # sums since the last logged step
    window_count: int = 0
    window_metrics: dict[str, list[float]] = field(default_factory=dict)  # the objective's own: [sum, count] by name
    best: float | None = None
    best_step: int | None = None
    validations_without_best: int = 0
    loss_scale: LossScale | None = None  # of fp16

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> TrainState:
        """What ``asdict`` gave, of this version or an earlier one."""
        scale = stored.get("loss_scale")
        return cls(**{**stored, "loss_scale": None if scale is None else LossScale(**scale)})


@dataclass(frozen=True)
class TrainResult:
    step: int
    tokens: int
    loss: float
    validation: dict[str, float]
    seconds: float
    resumed_from: int
    stopped_early: bool


def stream_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """Seed of the dropout stream of one micro-batch: known from the step, so no generator state is ever saved."""
    place = f"{seed}/{step}/{micro}" + (f"/{rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "little")
