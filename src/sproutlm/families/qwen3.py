"""Qwen3: Llama's parts with RMSNorm on queries and keys, and a head width of its own."""

from __future__ import annotations

from .adapter import REQUIRED, Family, Field
from .llama import FIELDS as LLAMA_FIELDS, TENSORS as LLAMA_TENSORS
from .parts import windows_from_hf, windows_to_hf

TENSORS = LLAMA_TENSORS | {
    "layers.{}.attention.q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attention.k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
}

# Qwen3Config's own defaults for these two do not follow from the other sizes, so a config.json must give them.
STATED = {"num_key_value_heads", "head_dim"}
FIELDS = tuple(
    Field(f.theirs, f.ours, REQUIRED) if f.theirs in STATED else f for f in LLAMA_FIELDS if f.ours != "mlp_bias"
)

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    tensors=TENSORS,
    fields=FIELDS,
    fixed={"hidden_act": "silu"},
    read=lambda config: windows_from_hf(config, config["num_hidden_layers"]),
    write=windows_to_hf,
)
