"""What a run is watched with: its trackers, and what MFU is measured against."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config.model import ModelConfig
from ..config.schema import Recipe
from ..plan.flops import flops
from ..train.precision import matmul_seconds
from ..train.trackers import About, Trackers, make
from ..train.watch import Work
from .prepare import Say

# Dense bf16 operations per second of a card, as its maker states them, by the name that the driver gives; no other name
# is guessed at: laptop and other variants of a card are slower.
CARD_PEAKS = {
    "NVIDIA B200": 2.25e15,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}
MEASURED_SIZE, MEASURED_SECONDS = 1024, 0.1
SMALL_SIZE, LONGEST_SECONDS = 256, 0.5  # where one product of MEASURED_SIZE would take longer, small ones stand for it


def peak(device: torch.device, compute: torch.dtype) -> float | None:
    """Operations per second that the device reaches: measured on the CPU, stated by the maker on a card; None = not known.

    A CPU's fp16 is none to measure: one product takes seconds, and another shape's is six times as fast."""
    if device.type == "cpu" and compute == torch.float16:
        return None
    if device.type == "cpu":
        small = matmul_seconds(compute, SMALL_SIZE, 0.0)
        if small * (MEASURED_SIZE / SMALL_SIZE) ** 3 > LONGEST_SECONDS:  # bf16 on cores without units for it
            return 2 * SMALL_SIZE**3 / small
        return 2 * MEASURED_SIZE**3 / matmul_seconds(compute, MEASURED_SIZE, MEASURED_SECONDS)
    if device.type == "cuda" and compute in (torch.bfloat16, torch.float16):
        return CARD_PEAKS.get(torch.cuda.get_device_name(device))
    return None


def work_of(recipe: Recipe, config: ModelConfig, device: torch.device, compute: torch.dtype, say: Say) -> Work:
    """FLOPs of a trained token of this run, and the peak of where it runs, said."""
    top = peak(device, compute)
    name = str(compute).removeprefix("torch.")
    if top is None:
        say(f"MFU: n/a, the {name} peak of {device.type} here is not known")
    else:
        how = "measured" if device.type == "cpu" else "stated by its maker"
        say(f"MFU is of {top / 1e12:.3g} TFLOP/s in {name} ({how})")
    return Work(flops(config, recipe.data.seq_len).training, top)


def trackers_of(recipe: Recipe, run: Path, say: Say) -> Trackers:
    """``metrics.jsonl`` and what ``train.trackers`` names. ``recipe`` is the resolved one: what a tracker shows as settings."""
    train = recipe.train
    about = About(run, train.tracker_name or recipe.name, train.tracker_project, recipe.model_dump(mode="json"))
    return make(train.trackers, about, say)
