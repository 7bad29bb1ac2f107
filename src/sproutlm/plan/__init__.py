"""What a model costs before anything runs: parameters, FLOPs per token, memory by part, and where it fits.

``flops.py`` and ``memory.py`` are the one place of their formulas; ``--dry-run`` and ``sprout plan`` both ask there.
"""

from __future__ import annotations

from .count import Parameters, count, parameters
from .flops import Flops, flops
from .memory import Setting, inference_memory, training_memory

__all__ = ["Flops", "Parameters", "Setting", "count", "flops", "inference_memory", "parameters", "training_memory"]
