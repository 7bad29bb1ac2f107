"""Cards and machines that a run may be planned for, with what their makers publish. Rates are dense, without sparsity."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SproutError

# GiB, as cards are sold. Of each a part stays free: what the display and other programs hold, and gaps between blocks.
CARDS = (4, 8, 12, 16, 24, 40, 80, 141)
USABLE = 0.92


@dataclass(frozen=True)
class Place:
    """A card or a machine with ``room`` bytes that a run may take. ``bf16`` and ``fp8``: products per second with float32
    sums (FLOP/s), ``memory``: bytes per second; 0 where nothing is known of them; ``source`` says who published them."""

    name: str
    room: int
    kind: str = "card"
    bf16: float = 0.0
    fp8: float = 0.0
    memory: float = 0.0
    source: str = ""


def _card(name: str, gb: float, bf16: float, fp8: float, memory: float, source: str) -> Place:
    return Place(name, int(gb * 2**30 * USABLE), "card", bf16 * 1e12, fp8 * 1e12, memory * 1e12, source)


NAMED: dict[str, Place] = {
    place.name: place
    for place in (
        _card("h100", 80, 989.4, 1978.9, 3.35, "NVIDIA H100 Tensor Core GPU datasheet, SXM5, halved for density"),
        _card("h200", 141, 989.4, 1978.9, 4.8, "NVIDIA H200 Tensor Core GPU datasheet, SXM, halved for density"),
        _card("a100", 80, 312.0, 0.0, 2.039, "NVIDIA A100 80GB datasheet, SXM4"),
        _card("4090", 24, 165.2, 330.3, 1.008, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
        # 112 tensor cores of the generation whose 272 make 59.5 TFLOP/s at 1.71 GHz (GA102 whitepaper, RTX 3080), at 1.777 GHz.
        _card("3090", 24, 71.0, 0.0, 0.936, "NVIDIA GA102 whitepaper, appendix A"),
        # 136 and 96 tensor cores of the generation whose 512 make 165.2 TFLOP/s at 2.52 GHz (the 4090), at 2.535 and 2.46 GHz.
        _card("4060ti", 16, 44.1, 88.3, 0.288, "Ada whitepaper's rate per core x 136 cores x 2.535 GHz"),
        _card("4060", 8, 30.2, 60.5, 0.272, "Ada whitepaper's rate per core x 96 cores x 2.46 GHz"),
        _card("3060", 12, 25.5, 0.0, 0.360, "GA102 whitepaper's rate per core x 112 cores x 1.777 GHz"),
        _card("3050", 6, 13.5, 0.0, 0.168, "GA102 whitepaper's rate per core x 72 cores x 1.47 GHz (the 6 GB card)"),
    )
}


def cards() -> list[Place]:
    return [Place(f"{gib} GB", int(gib * 2**30 * USABLE)) for gib in CARDS]


def machine(total: int, container: int | None) -> Place:
    """This machine's memory: all of it but what others need, or what its container may still take."""
    room = int(total * USABLE)
    return Place(f"CPU {total / 2**30:.0f} GB", room if container is None else min(room, container), "cpu")


def place_of(name: str) -> Place:
    """``h100``, or a size such as ``8GB``. SproutError where it is neither."""
    asked = name.strip().lower().replace(" ", "").removeprefix("rtx").removeprefix("geforce")
    if asked in NAMED:
        return NAMED[asked]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gb|gib|g)", asked)
    if size and 0 < float(size[1]) <= 100_000:
        return Place(f"{float(size[1]):g} GB", int(float(size[1]) * 2**30 * USABLE))
    known = ", ".join(NAMED)
    raise SproutError(f"--device {name}: no such device; expected cpu, {known}, or memory such as 8GB")
