"""A model's config and tensors as llama.cpp knows them: architecture, metadata, names, and the few changes of layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.model import ModelConfig, MoEConfig
from ..errors import SproutError
from ..families import expected_shapes, for_family
from ..model.rope import rope_frequencies, scaled_frequencies

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2",
    "gemma": "gemma", "gemma2": "gemma2", "qwen3_moe": "qwen3moe", "qwen2_moe": "qwen2moe", "dots1": "dots1",
}  # fmt: skip
# llama.cpp's llama turns neighbouring channels of a head; Hugging Face's turns channel i with channel i + half.
INTERLEAVED = ("llama",)


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its name there, the parameters of ours it is made from, and the way there and back."""

    name: str
    ours: tuple[str, ...]
    forward: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor], Sequence[Tensor]]


def refuse_unsupported(config: ModelConfig) -> None:
    """SproutError for a model that no llama.cpp architecture computes as ours does."""
    if config.family not in ARCHITECTURES:
        raise SproutError(
            f"{config.family} models cannot be written for llama.cpp; known are {', '.join(ARCHITECTURES)}"
        )
    for fault in _faults(config):
        raise SproutError(f"a {config.family} model of this shape cannot be run by llama.cpp: {fault}")


def _faults(config: ModelConfig) -> list[str]:
    family, moe, scaling = config.family, config.moe, config.rope_scaling
    faults = []
    if config.attention_bias and family not in ("llama", "gpt2"):
        faults.append(f"its {ARCHITECTURES[family]} has no place for attention_bias")
    if family == "gpt2" and config.activation != "gelu_tanh":
        faults.append(f"its gpt2 always has the tanh form of GELU, and this model has activation={config.activation}")
    if family.startswith("gemma") and not config.tie_embeddings:
        faults.append(f"its {family} always shares the embedding with the head (tie_embeddings)")
    if family == "dots1" and config.n_kv_heads != config.n_heads:
        faults.append("its dots1 always has as many key/value heads as query heads (n_kv_heads)")
    if family == "gemma2":
        faults += _gemma2_faults(config)
    if moe is not None:
        normalised = family != "qwen2_moe"
        if family != "dots1" and moe.normalize != normalised:
            faults.append(
                f"its {ARCHITECTURES[family]} always has moe.normalize={normalised}, and this model {moe.normalize}"
            )
        if family != "dots1" and moe.dense_layers:
            faults.append("layers without experts (moe.dense_layers) between layers with experts have no place there")
    if scaling is not None:
        if scaling.kind == "llama3" and ARCHITECTURES[family] != "llama":
            faults.append(f"its {ARCHITECTURES[family]} has no llama3 scaling of rotary frequencies; use yarn")
        if scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow, scaling.truncate) != (32.0, 1.0, True):
            faults.append("its yarn always has rope_scaling.beta_fast=32, beta_slow=1 and truncate=true")
    return faults


def _gemma2_faults(config: ModelConfig) -> list[str]:
    faults = []
    for name in ("attention_softcap", "logit_softcap"):
        if not getattr(config, name):
            faults.append(f"its gemma2 always caps (field {name})")
    scale = config.head_dim**-0.5 if config.n_layers != 46 else (config.dim / config.n_heads) ** -0.5
    if config.attention_scale is not None and not math.isclose(config.attention_scale, scale, rel_tol=1e-6):
        faults.append(f"its gemma2 always has attention_scale={scale:.6g}, and this model {config.attention_scale:.6g}")
    return faults


# --- metadata ---------------------------------------------------------------------------------------------------------


def metadata(config: ModelConfig, writer: Any) -> tuple[int, list[str]]:
    """Write the shape through a ``gguf.GGUFWriter``; returns the context, and what a person should know, as sentences."""
    notes: list[str] = []
    context = _context(config, notes)
    writer.add_context_length(context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    (writer.add_layer_norm_eps if config.norm == "layernorm" else writer.add_layer_norm_rms_eps)(config.norm_eps)
    if config.positions == "rope":
        writer.add_rope_dimension_count(config.rotary_dim)
        writer.add_rope_freq_base(config.rope_theta)
        _scaling(config, writer)
    if config.family == "gemma2":
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.logit_softcap)
        writer.add_sliding_window(config.sliding_window)
    if config.moe is not None:
        _experts(config.family, config.moe, writer)
    return context, notes


def _experts(family: str, moe: MoEConfig, writer: Any) -> None:
    import gguf

    writer.add_expert_count(moe.n_experts)
    writer.add_expert_used_count(moe.top_k)
    if family != "mixtral":
        writer.add_expert_feed_forward_length(moe.expert_dim)
    if family == "dots1":
        writer.add_expert_shared_count(moe.shared_dim // moe.expert_dim)
        writer.add_leading_dense_block_count(len(moe.dense_layers))
        writer.add_expert_weights_scale(moe.scale)
        writer.add_expert_weights_norm(moe.normalize)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    elif moe.shared_dim:
        writer.add_expert_shared_feed_forward_length(moe.shared_dim)


def native_windows(config: ModelConfig) -> bool:
    """Whether llama.cpp's architecture has this model's sliding windows: gemma2's, in every other layer."""
    wanted = [config.sliding_window if i % 2 == 0 else 0 for i in range(config.n_layers)]
    return config.family == "gemma2" and [config.window_of(i) for i in range(config.n_layers)] == wanted


def _context(config: ModelConfig, notes: list[str]) -> int:
    """The context within which the file answers as the model does."""
    context, why = config.max_seq_len, ""
    windows = [w for i in range(config.n_layers) if (w := config.window_of(i)) and not native_windows(config)]
    if windows and min(windows) < context:
        context, why = min(windows), "it has no such sliding window, and within one the answers are the same"
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        original = scaling.original_max_seq_len or config.max_seq_len
        if original < context:
            context, why = original, "it has no dynamic scaling of rotary frequencies, which begins beyond"
    if why:
        notes.append(f"the context in llama.cpp is {context:,} tokens, not {config.max_seq_len:,}: {why}")
    return context


def _scaling(config: ModelConfig, writer: Any) -> None:
    import gguf

    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("dynamic", "llama3"):  # llama3 is the tensor rope_freqs.weight
        return
    kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
    writer.add_rope_scaling_type(kinds[scaling.kind])
    writer.add_rope_scaling_factor(scaling.factor)
    writer.add_rope_scaling_orig_ctx_len(scaling.original_max_seq_len or config.max_seq_len)
    if scaling.kind == "yarn":
        _, attention = scaled_frequencies(torch.zeros(1), config)
        usual = 0.1 * math.log(scaling.factor) + 1.0
        if not math.isclose(attention, usual, rel_tol=1e-6):
            writer.add_rope_scaling_attn_factors(attention / usual)


# --- tensors ----------------------------------------------------------------------------------------------------------


def entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of the file, in the order of our parameters. SproutError where llama.cpp has no name for one."""
    import gguf

    architecture = ARCHITECTURES[config.family]
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.n_layers)
    family, found = for_family(config.family), []
    for ours in expected_shapes(config):
        if config.family == "gpt2" and "q_proj" in ours:
            theirs, made = family.their_name(ours).replace("q_proj", "c_attn"), _fused(ours)
        elif config.family == "gpt2" and ("k_proj" in ours or "v_proj" in ours):
            continue
        else:
            theirs, made = family.their_name(ours), _one(config, architecture, ours)
        theirs = theirs.replace("_correction_bias", "_correction.bias")
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise SproutError(f"{ours}: llama.cpp's {architecture} has no tensor for {theirs}")
        found.append(Entry(name, *made))
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        found.append(_frequencies(config))
    if (
        architecture in ("qwen2moe", "dots1") and config.tie_embeddings
    ):  # the others take the embedding where there is no head
        found.append(Entry("output.weight", ("embed_tokens.weight",), lambda t: t[0], lambda t: [t]))
    return found


Made = tuple[tuple[str, ...], Callable[[Sequence[Tensor]], Tensor], Callable[[Tensor], Sequence[Tensor]]]


def _fused(ours: str) -> Made:
    """GPT-2's q, k and v, one below the other."""
    parts = tuple(ours.replace("q_proj", f"{kind}_proj") for kind in "qkv")
    return parts, lambda tensors: torch.cat(list(tensors)), lambda tensor: tensor.chunk(3)


def _one(config: ModelConfig, architecture: str, ours: str) -> Made:
    if architecture in INTERLEAVED and (".q_proj." in ours or ".k_proj." in ours):
        heads = config.n_heads if ".q_proj." in ours else config.n_kv_heads
        return (ours,), lambda t: interleaved(t[0], heads), lambda t: [split_halves(t, heads)]
    if config.norm_offset and "norm" in ours:
        return (ours,), lambda t: t[0].float() + 1.0, lambda t: [t - 1.0]
    if ours.endswith(".shared_gate.weight"):
        return (ours,), lambda t: t[0].squeeze(0), lambda t: [t.unsqueeze(0)]
    return (ours,), lambda t: t[0], lambda t: [t]


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head reordered so that channels i and i + half, which turn together, become neighbours."""
    rest = weight.shape[1:]
    return weight.view(heads, 2, -1, *rest).transpose(1, 2).reshape(weight.shape)


def split_halves(weight: Tensor, heads: int) -> Tensor:
    """The way back from ``interleaved``."""
    rest = weight.shape[1:]
    return weight.view(heads, -1, 2, *rest).transpose(1, 2).reshape(weight.shape)


def _frequencies(config: ModelConfig) -> Entry:
    """Divisors of the rotary frequencies, one per channel pair."""
    scaled, _ = scaled_frequencies(torch.zeros(1), config)
    divisors = rope_frequencies(config.rotary_dim, config.rope_theta) / scaled
    return Entry("rope_freqs.weight", (), lambda tensors: divisors, lambda tensor: [])
