"""Hugging Face architectures that a ``Transformer`` can be read from and written as: one small file each.

A new one is a file with its two tables (tensor names, config fields) and its line in ``FAMILIES``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ..errors import SproutError
from .adapter import Family, check_state, expected_shapes
from .gemma import GEMMA, GEMMA2
from .gpt2 import GPT2
from .llama import LLAMA
from .mistral import MISTRAL
from .moe import DOTS1, MIXTRAL, QWEN2_MOE, QWEN3_MOE
from .qwen2 import QWEN2
from .qwen3 import QWEN3

FAMILIES: tuple[Family, ...] = (QWEN3, LLAMA, QWEN2, MISTRAL, GPT2, GEMMA, GEMMA2, QWEN3_MOE, MIXTRAL, QWEN2_MOE, DOTS1)

__all__ = ["FAMILIES", "Family", "check_state", "expected_shapes", "for_architecture", "for_family"]


def for_architecture(name: str, more: Sequence[str] = ()) -> Family:
    """The family of a Hugging Face architecture, such as ``Qwen3ForCausalLM``; SproutError where it is not known.

    ``more``: names that are known besides, for the sentence.
    """
    for family in FAMILIES:
        if family.architecture == name:
            return family
    raise SproutError(_unknown("architectures", name, [*(family.architecture for family in FAMILIES), *more]))


def for_family(name: str) -> Family:
    """The family that ``ModelConfig.family`` names; SproutError where it is not known."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise SproutError(_unknown("family", name, [family.name for family in FAMILIES]))


def _unknown(key: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    nearest = f"; the nearest is {near[0]}" if near else ""
    return f"{key}: {name!r} is not supported; known are {', '.join(known)}{nearest}"
