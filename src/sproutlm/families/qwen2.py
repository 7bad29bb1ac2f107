"""Qwen2 and Qwen2.5: Llama's parts with biases on q, k and v."""

from __future__ import annotations

import re

from .adapter import Family
from .llama import FIELDS as LLAMA_FIELDS, TENSORS as LLAMA_TENSORS
from .parts import windows_from_hf, windows_to_hf

TENSORS = {ours: theirs for ours, theirs in LLAMA_TENSORS.items() if not re.search(r"(o_proj|mlp\.\w+)\.bias$", ours)}
FIELDS = tuple(f for f in LLAMA_FIELDS if f.ours not in ("attention_bias", "mlp_bias", "head_dim"))

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    tensors=TENSORS,
    fields=FIELDS,
    fixed={"hidden_act": "silu"},
    read=lambda config: windows_from_hf(config, config["num_hidden_layers"]),
    write=windows_to_hf,
    heads_divide_width=True,
)
