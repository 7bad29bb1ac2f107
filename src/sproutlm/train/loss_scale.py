"""fp16's loss scale: small gradients are made larger before they are rounded, and divided again in float32.

fp16 has no number below 6e-8 and none above 65,504 (Micikevicius et al. 2018, arXiv:1710.03740). The scale is as large as it
goes: it doubles after ``GROWTH_STEPS`` steps without an overflow, and halves at each, whose update is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START, LEAST = 2.0**16, 1.0
GROWTH_STEPS = 2000


@dataclass
class LossScale:
    """``scale`` is of the mean loss, a power of two, so that it rounds nothing; all of it is kept in checkpoints."""

    scale: float = START
    finite_steps: int = 0  # since the scale last changed
    skipped: int = 0  # updates left out in the whole run

    def factor(self, tokens: int) -> float:
        """What the sum of the losses of a step of ``tokens`` is multiplied by: a power of two near scale / tokens."""
        return self.scale / 2 ** math.ceil(math.log2(tokens))

    def finite(self) -> None:
        """A step whose gradients were all numbers."""
        self.finite_steps += 1
        if self.finite_steps == GROWTH_STEPS:
            self.scale, self.finite_steps = self.scale * 2, 0

    def overflowed(self) -> bool:
        """A step whose gradients were not; False where the scale is at its least and the cause is another."""
        if self.scale <= LEAST:
            return False
        self.scale, self.finite_steps, self.skipped = self.scale / 2, 0, self.skipped + 1
        return True
