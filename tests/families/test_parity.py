"""Logits equal those of transformers 5.23, both directions, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sproutlm.config.model import ModelConfig
from sproutlm.export import load, save
from sproutlm.model import Transformer

VOCAB = 71
# Ours on the left of each case, what transformers calls the same on the right, written out by hand on purpose.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3-gqa-tied": (
        {"family": "qwen3", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope_theta": 10_000.0, "norm_eps": 1e-6},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 10_000.0},
    ),
    "qwen3-mqa-untied-wide-heads": (
        {"family": "qwen3", "n_heads": 4, "n_kv_heads": 1, "head_dim": 20, "rope_theta": 1e6, "norm_eps": 1e-4}
        | {"tie_embeddings": False},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 20, "rope_theta": 1e6, "rms_norm_eps": 1e-4}
        | {"tie_word_embeddings": False},
    ),
    "qwen3-mha-biases-odd-width": (
        {"family": "qwen3", "n_heads": 3, "n_kv_heads": 3, "head_dim": 6, "rope_theta": 50.0, "attention_bias": True},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6, "rope_theta": 50.0, "attention_bias": True},
    ),
    "llama-gqa-tied": (
        {"family": "llama", "n_heads": 4, "n_kv_heads": 2, "rope_theta": 500_000.0, "norm_eps": 1e-5},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
    ),
    "llama-mha-untied-narrow-heads": (
        {"family": "llama", "n_heads": 4, "head_dim": 4, "norm_eps": 1e-3, "tie_embeddings": False},
        {"num_attention_heads": 4, "head_dim": 4, "rms_norm_eps": 1e-3, "tie_word_embeddings": False},
    ),
    "llama-mqa-biases": (
        {"family": "llama", "n_heads": 8, "n_kv_heads": 1, "rope_theta": 100.0, "attention_bias": True},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "rope_theta": 100.0, "attention_bias": True},
    ),
}
YARN = {"factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def stretched(kind: str, original: int | None = 16, **numbers: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same scaling by our names and by theirs."""
    ours = {"kind": kind, **numbers} | ({} if original is None else {"original_max_seq_len": original})
    theirs = {"rope_type": kind, "rope_theta": 10_000.0, **numbers}
    theirs |= {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_scaling": ours}, {"rope_parameters": theirs}


def case(ours: dict[str, Any], theirs: dict[str, Any], *more: tuple[dict[str, Any], dict[str, Any]]) -> Any:
    for extra_ours, extra_theirs in more:
        ours, theirs = ours | extra_ours, theirs | extra_theirs
    return ours, theirs


GQA: Any = ({"n_heads": 4, "n_kv_heads": 2}, {"num_attention_heads": 4, "num_key_value_heads": 2})
CASES |= {
    "llama-linear": case({"family": "llama"}, {}, GQA, stretched("linear", None, factor=3.0)),
    "llama-dynamic-short": case({"family": "llama"}, {}, GQA, stretched("dynamic", None, factor=3.0)),
    "llama-dynamic-long": case(
        {"family": "llama", "max_seq_len": 8},
        {"max_position_embeddings": 8},
        GQA,
        stretched("dynamic", None, factor=3.0),
    ),
    "llama-llama3": case({"family": "llama"}, {}, GQA, stretched("llama3", **LLAMA3)),
    "qwen3-yarn": case({"family": "qwen3", "head_dim": 16}, {"head_dim": 16}, GQA, stretched("yarn", **YARN)),
    "llama-yarn-attention-factor": case(
        {"family": "llama"}, {}, GQA, stretched("yarn", factor=4.0, attention_factor=0.7, truncate=False)
    ),
    "llama-yarn-mscale": case(
        {"family": "llama"}, {}, GQA, stretched("yarn", factor=40.0, mscale=0.9, mscale_all_dim=0.5)
    ),
    "llama-mlp-biases": case({"family": "llama", "mlp_bias": True}, {"mlp_bias": True}, GQA),
    "qwen2-gqa-tied": case({"family": "qwen2", "norm_eps": 1e-5}, {"rms_norm_eps": 1e-5}, GQA),
    "qwen2-windows": case(
        {"family": "qwen2", "sliding_window": 5, "window_pattern": "FS", "tie_embeddings": False},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": False},
        GQA,
    ),
    "qwen3-windows-everywhere": case(
        {"family": "qwen3", "head_dim": 8, "sliding_window": 4},
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        GQA,
    ),
    "mistral-window": case(
        {"family": "mistral", "sliding_window": 6, "head_dim": 12}, {"sliding_window": 6, "head_dim": 12}, GQA
    ),
    "mistral-full": case({"family": "mistral"}, {"sliding_window": None}, GQA),
    "gpt2": ({"family": "gpt2", "n_heads": 4, "norm_eps": 1e-5}, {"n_head": 4}),
    "gpt2-untied-exact-gelu": (
        {"family": "gpt2", "n_heads": 2, "norm_eps": 1e-3, "activation": "gelu", "tie_embeddings": False},
        {"n_head": 2, "layer_norm_epsilon": 1e-3, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "gemma-mqa": case(
        {"family": "gemma", "n_heads": 4, "n_kv_heads": 1, "head_dim": 8},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
    ),
    "gemma2": case(
        {
            "family": "gemma2",
            "head_dim": 8,
            "sliding_window": 5,
            "attention_scale": 12**-0.5,
            "attention_softcap": 5.0,
            "logit_softcap": 3.0,
        },
        {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        GQA,
    ),
}
MOE: Any = {"n_experts": 6, "top_k": 2, "expert_dim": 24, "normalize": False, "balance": "aux"}
MOE_THEIRS: Any = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES |= {
    "qwen3-moe": case({"family": "qwen3_moe", "head_dim": 8, "moe": MOE}, {"head_dim": 8, **MOE_THEIRS}, GQA),
    "qwen3-moe-normalised-dense-layer": case(
        {"family": "qwen3_moe", "head_dim": 8, "moe": {**MOE, "normalize": True, "dense_layers": (0,)}},
        {"head_dim": 8, **MOE_THEIRS, "norm_topk_prob": True, "mlp_only_layers": [0]},
        GQA,
    ),
    "qwen3-moe-top-1": case(
        {"family": "qwen3_moe", "head_dim": 8, "moe": {**MOE, "normalize": True, "top_k": 1}},
        {"head_dim": 8, **MOE_THEIRS, "norm_topk_prob": True, "num_experts_per_tok": 1},
        GQA,
    ),
    "mixtral": case(
        {"family": "mixtral", "rope_theta": 1e6, "ffn_dim": 48, "moe": {**MOE, "expert_dim": 48, "normalize": True}},
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48},
        GQA,
    ),
    "qwen2-moe": case(
        {"family": "qwen2_moe", "moe": {**MOE, "shared_dim": 20, "shared_gate": True}},
        {**MOE_THEIRS, "shared_expert_intermediate_size": 20},
        GQA,
    ),
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
}


def our_config(case: str) -> ModelConfig:
    sizes = {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "ffn_dim": 44, "max_seq_len": 64}
    return ModelConfig(**{**sizes, **CASES[case][0]})


def their_config(case: str) -> Any:
    ours, theirs = CASES[case]
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 44}
    fields = {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, **sizes, **theirs}
    if ours["family"] == "gpt2":
        fields = {"rms_norm_eps": 1e-5, **sizes, "tie_word_embeddings": True, "max_position_embeddings": 64}
        fields = {GPT2_NAMES.get(name, name): value for name, value in fields.items()} | theirs
    return CLASSES[ours["family"]][0](**fields)


def randomise(module: torch.nn.Module) -> None:
    """Every parameter random and none zero or one; small embeddings, so that the norms' epsilon shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "embed_tokens" in name or "wte" in name or "wpe" in name:
                parameter.normal_(0, 0.1, generator=generator)
            else:
                parameter.normal_(0, 0.2, generator=generator)


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 19), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_hugging_face_model_read_here_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    theirs = CLASSES[CASES[case][0]["family"]][1](their_config(case)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = load(tmp_path)
    assert tokenizer is None and not ours.training
    assert ours.config == our_config(case)
    expected = theirs(tokens()).logits
    torch.testing.assert_close(ours(tokens()), expected, rtol=1.3e-6, atol=1e-5)
    assert expected.std() > 0.05

    # bf16 keeps 8 bits, and the two round in other places: both are measured against float32.
    low = [ours.to(torch.bfloat16)(tokens()), theirs.to(torch.bfloat16)(tokens()).logits]
    here, there = ((logits.float() - expected).norm() / expected.norm() for logits in low)
    # A router's choice between two experts that are nearly equal may fall the other way in bf16.
    assert here < 1.5 * there < (0.3 if ours.config.moe else 0.05)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_model_written_here_gives_the_same_logits_in_transformers(case: str, tmp_path: Path) -> None:
    """pitfall 43: AutoModelForCausalLM, no remote code, and no key missing, unexpected or of another shape."""
    ours = Transformer(our_config(case)).eval()
    randomise(ours)
    save(ours, None, tmp_path / "out")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=False, output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(theirs) is CLASSES[CASES[case][0]["family"]][1]
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs.eval()(tokens()).logits, ours(tokens()), rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("case", ["qwen3-gqa-tied", "llama-mqa-biases"])
def test_sizes_that_change_the_result_are_seen_by_the_comparison(case: str, tmp_path: Path) -> None:
    """The parity tests can fail: another theta or epsilon in config.json moves the logits beyond their tolerance."""
    ours = Transformer(our_config(case)).eval()
    randomise(ours)
    for change in ({"rope_theta": 77.0}, {"norm_eps": 2e-4}):
        other = Transformer(our_config(case).model_copy(update=change)).eval()
        other.load_state_dict(ours.state_dict())
        assert (other(tokens()) - ours(tokens())).abs().max() > 1e-4, change
