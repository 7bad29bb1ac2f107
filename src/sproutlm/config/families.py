"""What each family of models fixes: the parts that its Hugging Face architecture has, and those that it leaves open.

A family's fixed parts are the defaults of a ``ModelConfig`` that names it, and a config that asks for others is refused,
because no checkpoint of that family could hold it. ``open`` parts a checkpoint states for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The parts of a block and their values where a family says nothing: Llama's.
PARTS: dict[str, Any] = {
    "positions": "rope", "rope_fraction": 1.0, "rope_scaling": None,
    "norm": "rmsnorm", "norm_offset": False, "post_norm": False,
    "qk_norm": False, "attention_bias": False, "qkv_bias": False, "attention_scale": None, "attention_softcap": 0.0,
    "sliding_window": 0, "window_pattern": "",
    "activation": "silu", "gated": True, "mlp_bias": False, "moe": None,
    "embedding_scale": 1.0, "residual_scale": 1.0, "logit_softcap": 0.0, "research": (),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """``fixed``: parts that differ from Llama's; ``open``: parts that a model of the family may choose."""

    fixed: Mapping[str, Any] = field(default_factory=dict)
    open: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of open parts and sizes, where they are not Llama's


def _open(*names: str) -> frozenset[str]:
    return frozenset(names)


_WINDOW = ("sliding_window", "window_pattern")
_GEMMA: dict[str, Any] = {"norm_offset": True, "activation": "gelu_tanh"}

SHAPES: dict[str, Shape] = {
    "llama": Shape({}, _open("attention_bias", "mlp_bias", "rope_scaling")),
    "qwen3": Shape({"qk_norm": True}, _open("attention_bias", "rope_scaling", *_WINDOW)),
    "qwen2": Shape({"qkv_bias": True}, _open("rope_scaling", *_WINDOW)),
    "mistral": Shape({}, _open("rope_scaling", "sliding_window")),
    "gpt2": Shape(
        {"positions": "learned", "norm": "layernorm", "gated": False, "attention_bias": True, "mlp_bias": True},
        _open("activation"),
        {"activation": "gelu_tanh", "norm_eps": 1e-5},
    ),
    "gemma": Shape(_GEMMA, _open("embedding_scale", "attention_bias"), {"tie_embeddings": True}),
    "gemma2": Shape(
        {**_GEMMA, "post_norm": True},
        _open("embedding_scale", "attention_bias", "attention_scale", "attention_softcap", "logit_softcap", *_WINDOW),
        {"attention_softcap": 50.0, "logit_softcap": 30.0, "sliding_window": 4096, "window_pattern": "SF"},
    ),
    "qwen3_moe": Shape({"qk_norm": True}, _open("moe", "attention_bias", "rope_scaling", "sliding_window")),
    "mixtral": Shape({}, _open("moe", "rope_scaling", "sliding_window")),
    "qwen2_moe": Shape({"qkv_bias": True}, _open("moe", "rope_scaling", *_WINDOW)),
    "dots1": Shape({"qk_norm": True}, _open("moe", "attention_bias", "rope_scaling", *_WINDOW)),
    "research": Shape({}, frozenset(PARTS), {"qk_norm": True}),
}

# What the experts of a family always have: a value, or a tuple of those it may have.
_SOFTMAX: dict[str, Any] = {"score": "softmax", "scale": 1.0, "balance": ("aux", "none")}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_SOFTMAX, "shared_dim": 0},
    "qwen2_moe": {**_SOFTMAX, "shared_gate": True},
    "mixtral": {**_SOFTMAX, "shared_dim": 0, "normalize": True, "dense_layers": ()},
    "dots1": {"score": "sigmoid", "balance": "bias", "shared_gate": False},
}


def parts_of(family: str, dim: int) -> dict[str, Any]:
    """The parts and sizes that a config of this family has unless it says otherwise."""
    shape = SHAPES[family]
    values = {**PARTS, **shape.fixed, **shape.defaults}
    if family.startswith("gemma"):
        values["embedding_scale"] = math.sqrt(max(dim, 1))
    return values


def misfits(family: str, config: Any) -> list[tuple[str, str]]:
    """(field, sentence) of every part of ``config`` that a model of this family cannot have."""
    shape = SHAPES[family]
    found = []
    for name, plain in PARTS.items():
        wanted = shape.fixed.get(name, plain)
        if name not in shape.open and getattr(config, name) != wanted:
            others = [
                other for other, it in SHAPES.items() if name in it.open or it.fixed.get(name) == getattr(config, name)
            ]
            found.append(
                (name, f"a {family} checkpoint always has {name}={wanted!r}; remove it, or set family: {others[0]}")
            )
    return found + (misfit_experts(family, config.moe) if config.moe is not None else [])


def experts_of(family: str) -> dict[str, Any]:
    """The fields of ``moe`` that follow from the family."""
    return {name: value for name, value in EXPERTS.get(family, {}).items() if not isinstance(value, tuple)}


def misfit_experts(family: str, moe: Any) -> list[tuple[str, str]]:
    """(field, sentence) of all that a checkpoint of this family could not hold of these experts."""
    found = []
    for name, wanted in EXPERTS.get(family, {}).items():
        given = getattr(moe, name)
        if given != wanted and not (isinstance(wanted, tuple) and given in wanted):
            others = [
                other
                for other, it in EXPERTS.items()
                if name not in it or given == it[name] or given in _several(it[name])
            ]
            cure = f"or set family: {(others or ['research'])[0]}"
            has = " or ".join(map(repr, wanted)) if isinstance(wanted, tuple) and wanted else repr(wanted)
            found.append(
                (f"moe.{name}", f"a {family} checkpoint cannot hold {given!r}; it always has {has}; change it, {cure}")
            )
    if family == "dots1":
        if moe.shared_dim == 0 or moe.shared_dim % moe.expert_dim:
            sentence = (
                f"a dots1 checkpoint has shared experts of the routed ones' width; shared_dim={moe.shared_dim} is to be a "
                f"multiple of expert_dim={moe.expert_dim} above 0"
            )
            found.append(("moe.shared_dim", sentence))
        if moe.dense_layers != tuple(range(len(moe.dense_layers))):
            sentence = f"the dense layers of a dots1 checkpoint are the first ones; {list(moe.dense_layers)} are not"
            found.append(("moe.dense_layers", sentence))
    return found


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
