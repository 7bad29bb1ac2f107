"""What kind of value each field of a config.json must have, checked before anything is made of it.

These files are written by many programs and mended by hand: a number as text, a list where one number was meant, a size
beyond any memory. Each becomes a sentence with the field's name; nothing that large is ever laid out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import SproutError

MOST = 2**31 - 1  # other programs read sizes as 32-bit numbers
MOST_LAYERS = 10_000  # lists of a layer's kind are made before the weights are looked at

SIZES = {
    "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head",
    "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings", "n_positions",
    "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size",
}  # fmt: skip
COUNTS = {"n_inner", "n_shared_experts", "first_k_dense_replace", "decoder_sparse_step", "max_window_layers"} | {
    "sliding_window"
}
EPSILONS = {"rms_norm_eps", "layer_norm_epsilon"}
NUMBERS = {"query_pre_attn_scalar", "partial_rotary_factor", "rope_theta"}
FROM_0 = {
    "router_aux_loss_coef", "aux_loss_alpha", "attn_logit_softcapping", "final_logit_softcapping",
    "routed_scaling_factor",
}  # fmt: skip
SWITCHES = {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob", "qkv_bias"}
OBJECTS = {"rope_scaling", "rope_parameters", "auto_map", "quantization_config"}
LISTS: dict[str, type] = {"layer_types": str, "mlp_only_layers": int}


def check_fields(config: Mapping[str, Any]) -> None:
    """SproutError for the first field that is not of its kind; null is as good as absent."""
    for name, value in config.items():
        wrong = None if value is None else _wrong(name, value)
        if wrong:
            raise SproutError(f"config.json: {name} is {_short(value)}; {wrong}")


def _wrong(name: str, value: Any) -> str | None:
    if name in SIZES or name in COUNTS:
        least, most = int(name in SIZES), MOST_LAYERS if name in ("num_hidden_layers", "n_layer") else MOST
        if not _number(value) or value < least:
            return "expected a number above 0" if least else "expected a whole number, 0 or more"
        if value != int(value):
            return "expected a whole number"
        return f"no model is that large; expected at most {most:,}" if value > most else None
    if name in EPSILONS:
        return None if _number(value) and 0 < value < 1 else "expected a number above 0 and below 1"
    if name in NUMBERS:
        return None if _number(value) and value > 0 else "expected a number above 0"
    if name in FROM_0:
        return None if _number(value) and value >= 0 else "expected a number, 0 or more"
    if name in SWITCHES:
        return None if isinstance(value, bool) else "expected true or false"
    if name in OBJECTS:
        return None if isinstance(value, Mapping) else "expected an object or null"
    if name in LISTS:
        kind = LISTS[name]
        well = isinstance(value, list) and all(isinstance(it, kind) and not isinstance(it, bool) for it in value)
        return None if well else f"expected a list of {'names' if kind is str else 'whole numbers'}"
    return None


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
