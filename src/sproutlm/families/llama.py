"""Llama: RMSNorm, grouped queries, rotary positions, SwiGLU."""

from __future__ import annotations

from .adapter import REQUIRED, Family, Field

# Our parameter name -> the name in a Hugging Face file; {} is the layer's number.
TENSORS = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attention.q_proj.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.k_proj.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.v_proj.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.o_proj.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attention.q_proj.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.attention.k_proj.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.attention.v_proj.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.attention.o_proj.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp.gate_proj.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.mlp.up_proj.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.mlp.down_proj.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.mlp.gate_proj.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layers.{}.mlp.up_proj.bias": "model.layers.{}.mlp.up_proj.bias",
    "layers.{}.mlp.down_proj.bias": "model.layers.{}.mlp.down_proj.bias",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}

# config.json field, our field, and what its absence (or null) means there. Rotary fields are the adapter's own.
FIELDS = (
    Field("vocab_size", "vocab_size", REQUIRED),
    Field("hidden_size", "dim", REQUIRED),
    Field("num_hidden_layers", "n_layers", REQUIRED),
    Field("num_attention_heads", "n_heads", REQUIRED),
    Field("num_key_value_heads", "n_kv_heads", None),  # None: ModelConfig derives it (as many as query heads)
    Field("head_dim", "head_dim", None),  # None: dim / n_heads
    Field("intermediate_size", "ffn_dim", REQUIRED),
    Field("max_position_embeddings", "max_seq_len", REQUIRED),
    Field("rms_norm_eps", "norm_eps", 1e-6),
    Field("attention_bias", "attention_bias", False),
    Field("mlp_bias", "mlp_bias", False),
    Field("tie_word_embeddings", "tie_embeddings", False),
)

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    tensors=TENSORS,
    fields=FIELDS,
    fixed={"hidden_act": "silu"},
    heads_divide_width=True,  # LlamaConfig refuses other widths, though the layers could hold them
)
