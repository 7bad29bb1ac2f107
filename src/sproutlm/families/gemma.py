"""Gemma and Gemma 2: norms that multiply by 1 + weight, scaled embeddings, a GELU gate; Gemma 2 caps and norms twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..config.model import ModelConfig
from ..errors import SproutError
from .adapter import Family, Field
from .llama import FIELDS as LLAMA_FIELDS, TENSORS as LLAMA_TENSORS
from .parts import windows_from_hf, windows_to_hf

TENSORS = {ours: theirs for ours, theirs in LLAMA_TENSORS.items() if ".mlp." not in ours or ours.endswith(".weight")}
TENSORS2 = TENSORS | {
    "layers.{}.attention_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.mlp_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
FIELDS = tuple(
    Field(f.theirs, f.ours, 256) if f.ours == "head_dim" else f for f in LLAMA_FIELDS if f.ours != "mlp_bias"
)


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(config, "use_bidirectional_attention", (None, False))
    _refuse(config, "hidden_act", (None, "gelu_pytorch_tanh", "gelu"))  # the first files say gelu and mean the other
    tied = config.get("tie_word_embeddings", True)
    return {"embedding_scale": math.sqrt(config["hidden_size"]), "tie_embeddings": bool(tied)}


def _read2(config: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(config, "hidden_activation", (None, "gelu_pytorch_tanh"))
    kinds = config.get("layer_types") or [
        "full_attention" if i % 2 else "sliding_attention" for i in range(config["num_hidden_layers"])
    ]
    return {
        **_read({**config, "hidden_act": None}),
        **windows_from_hf({"sliding_window": 4096, **config, "layer_types": kinds}, config["num_hidden_layers"]),
        "attention_scale": (config.get("query_pre_attn_scalar") or 256) ** -0.5,
        "attention_softcap": config.get("attn_logit_softcapping", 50.0) or 0.0,
        "logit_softcap": config.get("final_logit_softcapping", 30.0) or 0.0,
    }


def _refuse(config: Mapping[str, Any], name: str, known: tuple[Any, ...]) -> None:
    if config.get(name) not in known:
        raise SproutError(f"config.json: {name} is {config.get(name)!r}; supported is {known[-1]!r}")


def _write(config: ModelConfig) -> dict[str, Any]:
    if not math.isclose(config.embedding_scale, math.sqrt(config.dim), rel_tol=1e-6):
        raise SproutError(
            f"a gemma file's embedding_scale is always sqrt(dim); this model has {config.embedding_scale}"
        )
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _write2(config: ModelConfig) -> dict[str, Any]:
    windows = windows_to_hf(config)
    windows.pop("use_sliding_window")
    scalar = (config.attention_scale or config.head_dim**-0.5) ** -2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-6):
        raise SproutError(
            f"a gemma2 file holds attention_scale as 1 / sqrt(a whole number), and {config.attention_scale} is none; choose "
            f"{round(scalar) ** -0.5 if scalar > 1 else 1.0:.6g}"
        )
    windows.pop("max_window_layers", None)
    return {
        **_write(config),
        "layer_types": ["full_attention"] * config.n_layers,
        **windows,
        "query_pre_attn_scalar": round(scalar),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
    }


GEMMA = Family("gemma", "GemmaForCausalLM", "gemma", TENSORS, FIELDS, fixed={}, read=_read, write=_write)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", "gemma2", TENSORS2, FIELDS, fixed={}, read=_read2, write=_write2)
