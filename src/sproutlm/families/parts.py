"""Parts of a config.json that several families share and that are more than one number: rotary positions and windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.model import ModelConfig
from ..errors import SproutError

# config.json's name of each number of a scaling, and ours.
SCALING = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_seq_len",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}
KINDS = ("linear", "dynamic", "yarn", "llama3")
OF_KIND = {
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale"}
    | {"mscale_all_dim", "truncate"},
}


def rope_from_hf(config: Mapping[str, Any], theta: float = 10_000.0) -> dict[str, Any]:
    """``rope_theta``, ``rope_fraction`` and ``rope_scaling`` from either notation of a config.json."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    for field, parameters in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(parameters, Mapping):
            raise SproutError(f"config.json: {field} is {parameters!r}; expected an object or null")
        if any(isinstance(value, Mapping) for value in parameters.values()):
            raise SproutError(f"config.json: {field} differs by layer; one set for all layers is supported")
    given = [where.get("partial_rotary_factor") for where in (config, new)]
    fractions = {float(value) for value in given if value is not None}
    if len(fractions) > 1:
        raise SproutError(f"config.json: partial_rotary_factor is given twice and differs: {sorted(fractions)}")
    return {
        "rope_theta": _theta(theta, config, new, old),
        "rope_fraction": fractions.pop() if fractions else 1.0,
        "rope_scaling": _scaling("rope_parameters", new) or _scaling("rope_scaling", old),
    }


def _theta(default: float, *places: Mapping[str, Any]) -> float:
    values = [place["rope_theta"] for place in places if place.get("rope_theta") is not None]
    if any(not isinstance(v, int | float) or v <= 0 for v in values):
        raise SproutError(f"config.json: rope_theta is {values!r}; expected a number above 0")
    if len(set(values)) > 1:
        raise SproutError(f"config.json: rope_theta is given twice and differs: {values[0]} and {values[1]}")
    return float(values[0]) if values else default


def _scaling(field: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise SproutError(f"config.json: {field} asks for {kind!r} scaling; supported are default, {known}")
    given = {name: parameters[name] for name in SCALING if parameters.get(name) is not None}
    if "factor" not in given:
        raise SproutError(f"config.json: {field} of kind {kind!r} has no factor")
    return {"kind": kind, **{SCALING[name]: value for name, value in given.items() if name in OF_KIND[kind]}}


def rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json for rotary positions, in the notations of transformers 4 and 5."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        values = scaling.model_dump()
        values["original_max_seq_len"] = scaling.original_max_seq_len or config.max_seq_len
        parameters = {"rope_type": scaling.kind}
        parameters |= {
            name: values[ours]
            for name, ours in SCALING.items()
            if name in OF_KIND[scaling.kind] and values[ours] is not None
        }
    fields: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_fraction != 1.0:
        fields["partial_rotary_factor"] = parameters["partial_rotary_factor"] = config.rope_fraction
    if scaling is not None:
        fields["rope_scaling"] = dict(parameters)
    return {**fields, "rope_parameters": {**parameters, "rope_theta": config.rope_theta}}


# --- windows ----------------------------------------------------------------------------------------------------------


def windows_from_hf(
    config: Mapping[str, Any],
    n_layers: int,
    always: bool = False,
    otherwise: int | None = 4096,
    alternate: bool = False,
) -> dict[str, Any]:
    """``sliding_window`` and ``window_pattern``. ``always``: there is no switch, a number alone puts it on.

    ``otherwise``: the window where a file does not name one (null is none). ``alternate``: without ``layer_types`` every
    second layer has it, below ``max_window_layers``; else those from there on (28, transformers' own default).
    """
    window, kinds = config.get("sliding_window", otherwise), config.get("layer_types")
    unknown = sorted({str(kind) for kind in kinds or ()} - {"full_attention", "sliding_attention"})
    if unknown:
        known = "full_attention and sliding_attention"
        raise SproutError(f"config.json: layer_types holds {', '.join(unknown)}; supported are {known}")
    if kinds is not None and len(kinds) != n_layers:
        raise SproutError(f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers is {n_layers}")
    if kinds is None:
        border = config.get("max_window_layers")
        border = 0 if always else 28 if border is None else border
        on = window is not None and (always or bool(config.get("use_sliding_window", False)))
        windowed = [on and (i % 2 == 0 and i < border if alternate else i >= border) for i in range(n_layers)]
        kinds = ["sliding_attention" if it else "full_attention" for it in windowed]
    pattern = "".join("S" if kind == "sliding_attention" else "F" for kind in kinds)
    if "S" not in pattern:
        return {"sliding_window": 0, "window_pattern": ""}
    if not isinstance(window, int) or window <= 0:
        raise SproutError(f"config.json: sliding_window is {window!r}, and layer_types asks for one; expected a number")
    return {"sliding_window": window, "window_pattern": shortest_pattern(pattern)}


def shortest_pattern(pattern: str) -> str:
    """The shortest pattern that, repeated over the layers, gives this one; empty where all layers have a window."""
    if "F" not in pattern:
        return ""
    for length in range(1, len(pattern)):
        if (pattern[:length] * len(pattern))[: len(pattern)] == pattern:
            return pattern[:length]
    return pattern


def windows_to_hf(config: ModelConfig, *, switch: bool = True) -> dict[str, Any]:
    """The fields of config.json for windows; ``switch`` where the family has ``use_sliding_window`` and layer types."""
    windows = [config.window_of(layer) for layer in range(config.n_layers)]
    if not switch:
        return {"sliding_window": config.sliding_window or None}
    if not any(windows):
        return {"use_sliding_window": False}
    first = next(i for i, window in enumerate(windows) if window)
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": first,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }
