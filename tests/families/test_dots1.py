"""dots.llm1: plain shared experts, sigmoid scores and the biases of loss-free balancing, both ways through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Dots1Config, Dots1ForCausalLM

from sproutlm.config.model import ModelConfig
from sproutlm.errors import SproutError
from sproutlm.export import load, save
from sproutlm.families import for_family
from sproutlm.model import Transformer

OURS: dict[str, Any] = {
    "family": "dots1", "vocab_size": 61, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 12,
    "ffn_dim": 44, "max_seq_len": 64, "tie_embeddings": False,
    "moe": {"n_experts": 6, "top_k": 2, "expert_dim": 16, "shared_dim": 32, "scale": 2.5, "dense_layers": (0,)},
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 12, "intermediate_size": 44, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 2,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "norm_topk_prob": True, "rms_norm_eps": 1e-6,
}  # fmt: skip
CASES = {
    "plain": ({}, {}),
    "unnormalised-tied": (
        {"tie_embeddings": True, "moe": {**OURS["moe"], "normalize": False, "dense_layers": ()}},
        {"tie_word_embeddings": True, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "windows-biases": (
        {"sliding_window": 5, "window_pattern": "FSS", "attention_bias": True},
        {"sliding_window": 5, "max_window_layers": 1, "attention_bias": True},
    ),
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """No weight is zero or one, and the biases change which experts are chosen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, tensor in sorted(
            [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "bias" in n)]
        ):
            tensor.normal_(0.1, 0.3, generator=generator)
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 61, (2, 19), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_those_of_transformers_in_both_directions(case: str, tmp_path: Path) -> None:
    """pitfall 43, for a model with loss-free balancing."""
    config = ModelConfig(**{**OURS, **CASES[case][0]})
    theirs = randomised(Dots1ForCausalLM(Dots1Config(**{**THEIRS, **CASES[case][1]})))
    theirs.save_pretrained(tmp_path / "theirs")
    read, _ = load(tmp_path / "theirs")
    assert read.config == config
    torch.testing.assert_close(read(tokens()), theirs(tokens()).logits, rtol=1.3e-6, atol=1e-5)

    ours = randomised(Transformer(config))
    save(ours, None, tmp_path / "ours")
    back, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(back) is Dots1ForCausalLM
    torch.testing.assert_close(back.eval()(tokens()).logits, ours(tokens()), rtol=1.3e-6, atol=1e-5)
    before = ours(tokens())
    for layer in ours.layers[1:]:
        layer.mlp.expert_bias.zero_()
    assert (ours(tokens()) - before).abs().max() > 1e-3  # the biases were part of what was compared


@torch.no_grad()
def test_biases_stay_in_float32_in_a_bf16_file(tmp_path: Path) -> None:
    ours = Transformer(ModelConfig(**OURS)).init_weights(1)
    ours.layers[1].mlp.expert_bias += 0.001 * torch.arange(6) + 0.5
    save(ours, None, tmp_path / "out", dtype="bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    assert torch.equal(stored["model.layers.1.mlp.gate.e_score_correction_bias"], ours.layers[1].mlp.expert_bias)
    assert load(tmp_path / "out", None)[0].layers[1].mlp.expert_bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("dots1", {"shared_dim": 0}, "shared_dim=0 is to be a multiple of expert_dim=16"),
        ("dots1", {"shared_dim": 24}, "shared_dim=24"),
        ("dots1", {"dense_layers": (1,)}, "are the first ones"),
        ("dots1", {"balance": "aux"}, "moe.balance.*cannot hold 'aux'.*'bias'"),
        ("qwen3_moe", {"shared_dim": 0, "balance": "bias"}, "moe.balance.*'aux' or 'none'.*family: dots1"),
        ("qwen3_moe", {"shared_dim": 0, "score": "sigmoid"}, "moe.score.*'softmax'.*family: dots1"),
        ("qwen3_moe", {"shared_dim": 16}, "moe.shared_dim.*family: qwen2_moe"),
        ("qwen2_moe", {"shared_gate": False}, "moe.shared_gate"),
        ("mixtral", {"shared_dim": 0, "normalize": False}, "moe.normalize"),
    ],
)
def test_experts_that_no_file_of_the_family_holds_are_refused_before_training(
    family: str, change: dict[str, Any], expected: str
) -> None:
    moe = {"n_experts": 6, "expert_dim": 16, "shared_dim": 32, **change}
    with pytest.raises(ValueError, match=expected):
        ModelConfig(family=family, vocab_size=9, dim=16, n_layers=3, n_heads=2, moe=moe)
    good = ModelConfig(**OURS)
    with pytest.raises(SproutError, match="moe.balance"):  # and a config that was put together by hand, at the export
        for_family("dots1").config_to_hf(
            good.model_copy(update={"moe": good.moe.model_copy(update={"balance": "aux"})})
        )
