"""Mistral: Llama's parts, with a sliding window in every layer where the config names one."""

from __future__ import annotations

from .adapter import Family
from .llama import FIELDS as LLAMA_FIELDS, TENSORS as LLAMA_TENSORS
from .parts import windows_from_hf, windows_to_hf

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    tensors={ours: theirs for ours, theirs in LLAMA_TENSORS.items() if not ours.endswith(".bias")},
    fields=tuple(f for f in LLAMA_FIELDS if f.ours not in ("attention_bias", "mlp_bias")),
    fixed={"hidden_act": "silu"},
    read=lambda config: windows_from_hf(config, config["num_hidden_layers"], always=True),
    write=lambda config: windows_to_hf(config, switch=False),
)
