"""Golden rotary frequencies: every kind of scaling at numbers chosen so that the result can be worked out by hand.

With theta 10,000 and 8 channels the four frequencies are 1, 1/10, 1/100 and 1/1000. At 1,571 tokens of original context
(2 pi times 250.0324) they turn 250, 25, 2.5 and 0.25 times, which puts one pair into each regime of Llama 3 and YaRN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..config.model import ModelConfig
from ..model.rope import rope_tables, scaled_frequencies
from .measure import Measure, close, none_of, worst


@dataclass(frozen=True)
class Figures:
    """``golden``: frequencies at the last of ``seq`` positions; ``factor`` on cosines and sines."""

    name: str
    changes: dict[str, Any]
    golden: tuple[float, ...]
    factor: float = 1.0
    seq: int = 8


def _scaled(kind: str, factor: float, original: int = 1571, **numbers: Any) -> dict[str, Any]:
    return {"rope_scaling": {"kind": kind, "factor": factor, "original_max_seq_len": original, **numbers}}


FIGURES = (
    Figures("plain", {}, (1.0, 0.1, 0.01, 0.001)),
    Figures("plain, theta 100, 4 channels", {"head_dim": 4, "rope_theta": 100.0}, (1.0, 0.1)),
    Figures("half of the channels", {"rope_fraction": 0.5}, (1.0, 0.01)),
    Figures("linear, factor 4", _scaled("linear", 4.0), (0.25, 0.025, 0.0025, 0.00025)),
    # Within the original 8 tokens nothing changes. At 16 the base grows by (3 * 16/8 - 2) ** (4/2) = 16: 100 -> 1,600,
    # whose square root is 40.
    Figures("dynamic, short", {"head_dim": 4, "rope_theta": 100.0} | _scaled("dynamic", 3.0, 8), (1.0, 0.1)),
    Figures("dynamic, long", {"head_dim": 4, "rope_theta": 100.0} | _scaled("dynamic", 3.0, 8), (1.0, 0.025), seq=16),
    # 250 and 25 turns: left alone. 2.500324 turns: a blend, (2.500324 - 1) / 3 = 0.5001080 of the old frequency and
    # 0.4998920 of an eighth of it. 0.25 turns: an eighth.
    Figures("llama3, factor 8", _scaled("llama3", 8.0), (1.0, 0.1, 0.005625945, 0.000125)),
    # 32 turns fall on pair 8 ln(250.0324 / 32) / (2 ln 10,000) = 0.8928, rounded down to 0; 1 turn on pair 2.398, up to
    # 3. So 0, 1/3, 2/3 and all of each pair's frequency is divided by 4. The tables grow by 0.1 ln 4 + 1.
    Figures("yarn, factor 4", _scaled("yarn", 4.0), (1.0, 0.075, 0.005, 0.00025), 1.138629436),
    # Unrounded: shares (i - 0.892846) / (2.397996 - 0.892846): 0, 0.071191, 0.735577 and 1 of three quarters.
    Figures(
        "yarn, not rounded", _scaled("yarn", 4.0, truncate=False), (1.0, 0.09466065, 0.004483173, 0.00025), 1.138629436
    ),
    Figures(
        "yarn, attention factor 0.7", _scaled("yarn", 4.0, attention_factor=0.7), (1.0, 0.075, 0.005, 0.00025), 0.7
    ),
    # (0.1 * 0.9 * ln 40 + 1) / (0.1 * 0.5 * ln 40 + 1) = 1.331999151 / 1.184443973
    Figures(
        "yarn, mscale",
        _scaled("yarn", 40.0, mscale=0.9, mscale_all_dim=0.5),
        (1.0, 0.0675, 0.0035, 0.000025),
        1.124577591,
    ),
)


def golden_frequencies(figures: Figures) -> Measure:
    """pitfall 15: the frequencies, and the tables made of them at the last position, are the ones worked out by hand."""
    config = ModelConfig(**{"family": "research", "head_dim": 8, "max_seq_len": 64, **figures.changes})
    positions = torch.arange(figures.seq)
    found, factor = scaled_frequencies(positions, config)
    found = found.expand(figures.seq, -1)[-1]
    golden = torch.tensor(figures.golden)
    if found.shape != golden.shape:
        return none_of([f"{len(found)} frequencies instead of {len(golden)}"])
    cos, sin = rope_tables(positions, config, torch.float32)
    angles = [(figures.seq - 1) * frequency for frequency in figures.golden] * 2
    tables = torch.stack((cos.reshape(figures.seq, -1)[-1], sin.reshape(figures.seq, -1)[-1]))
    expected = torch.tensor([[f(a) * figures.factor for a in angles] for f in (math.cos, math.sin)])
    return worst(
        (
            close(found / golden, torch.ones_like(golden), atol=1e-6),  # relative: the small ones count as much
            close(torch.tensor(factor), torch.tensor(figures.factor), atol=1e-6),
            close(tables, expected, atol=3e-6),
        )
    )
