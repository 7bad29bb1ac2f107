"""GPT-2: learned positions, LayerNorm, GELU, biases everywhere; its matrices are stored transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.model import ModelConfig
from ..errors import SproutError
from .adapter import REQUIRED, Family, Field
from .layout import GPT2_LAYOUT


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


_LAYER = "transformer.h.{}."
TENSORS = {
    "embed_tokens.weight": "transformer.wte.weight",
    "embed_positions.weight": "transformer.wpe.weight",
    **_both("layers.{}.attention_norm", _LAYER + "ln_1"),
    **_both("layers.{}.attention.q_proj", _LAYER + "attn.q_proj"),
    **_both("layers.{}.attention.k_proj", _LAYER + "attn.k_proj"),
    **_both("layers.{}.attention.v_proj", _LAYER + "attn.v_proj"),
    **_both("layers.{}.attention.o_proj", _LAYER + "attn.c_proj"),
    **_both("layers.{}.mlp_norm", _LAYER + "ln_2"),
    **_both("layers.{}.mlp.up_proj", _LAYER + "mlp.c_fc"),
    **_both("layers.{}.mlp.down_proj", _LAYER + "mlp.c_proj"),
    **_both("norm", "transformer.ln_f"),
    "lm_head.weight": "lm_head.weight",
}

FIELDS = (
    Field("vocab_size", "vocab_size", REQUIRED),
    Field("n_embd", "dim", REQUIRED),
    Field("n_layer", "n_layers", REQUIRED),
    Field("n_head", "n_heads", REQUIRED),
    Field("n_positions", "max_seq_len", 1024),
    Field("layer_norm_epsilon", "norm_eps", 1e-5),
    Field("tie_word_embeddings", "tie_embeddings", True),
)
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("activation_function", "gelu_new")
    if not isinstance(kind, str) or kind not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise SproutError(f"config.json: activation_function is {kind!r}; supported are {known}")
    return {"activation": ACTIVATIONS[kind], "ffn_dim": config.get("n_inner") or 4 * int(config["n_embd"])}


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.activation not in names or config.n_kv_heads != config.n_heads:
        what = (
            f"activation={config.activation}" if config.activation not in names else f"n_kv_heads={config.n_kv_heads}"
        )
        raise SproutError(f"a GPT-2 file cannot hold {what}; choose another family to export as")
    if config.head_dim * config.n_heads != config.dim:
        raise SproutError(f"a GPT-2 file cannot hold head_dim={config.head_dim}; it is always dim / n_heads")
    return {
        "activation_function": names[config.activation],
        "n_inner": config.ffn_dim,
        "n_ctx": config.max_seq_len,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    tensors=TENSORS,
    fields=FIELDS,
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    read=_read,
    write=_write,
    layout=GPT2_LAYOUT,
    rotary=False,
)
