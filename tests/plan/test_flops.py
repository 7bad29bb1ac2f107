"""The formula of FLOPs per token against torch's own counter, and against the mask that the model uses."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sproutlm.config.model import ModelConfig, ResearchPart
from sproutlm.config.presets import PRESETS
from sproutlm.data.loader import Batch
from sproutlm.model import Transformer
from sproutlm.model.attention import row_mask
from sproutlm.objectives.next_token import next_token
from sproutlm.plan.flops import attention_flops, flops, matrix_entries, mean_keys

SMALL: dict[str, Any] = {"vocab_size": 96, "dim": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
# 10 is no multiple of 4: experts then take the loop, whose products torch's counter sees.
EXPERTS = {"n_experts": 5, "top_k": 2, "expert_dim": 10}
SHAPES = {
    "gpt2": {"family": "gpt2"},
    "llama, grouped queries": {"family": "llama", "n_kv_heads": 2},
    "qwen3, heads of their own width, untied": {"n_kv_heads": 1, "head_dim": 16, "tie_embeddings": False},
    "window": {"family": "mistral", "sliding_window": 8},
    "research": {"family": "research", "research": get_args(ResearchPart), "n_kv_heads": 2},
    "experts": {"family": "qwen3_moe", "moe": EXPERTS | {"dense_layers": (1,)}},
    "shared expert": {"family": "qwen2_moe", "moe": EXPERTS | {"shared_dim": 20, "shared_gate": True}},
}


def counted(config: ModelConfig, seq: int, train: bool) -> int:
    model = Transformer(config).init_weights(0)
    tokens = torch.randint(0, config.vocab_size, (2, seq), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens, torch.arange(seq).expand(2, seq), None, torch.arange(2))
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        if train:
            next_token(model, batch)[0].backward()
        else:
            with torch.no_grad():
                model(tokens)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_products_are_those_that_torch_counts(shape: dict[str, Any]) -> None:
    """Without the saving of the mask, which torch's counter does not know: equal to the last one."""
    config, seq = ModelConfig(**SMALL | shape), 24
    per_token = 2 * matrix_entries(config) + attention_flops(config, seq, masked=False)
    assert counted(config, seq, train=False) == pytest.approx(per_token * 2 * seq, rel=1e-12)
    assert counted(config, seq, train=True) == pytest.approx(3 * per_token * 2 * seq, rel=1e-12)
    figures = flops(config, seq)
    assert figures.training == 3 * figures.forward == 3 * (2 * matrix_entries(config) + figures.attention)


@pytest.mark.parametrize("window", [0, 1, 5, 40, 100])
def test_keys_are_those_that_the_mask_leaves(window: int) -> None:
    seq = 40
    mask = row_mask(None, seq, window, torch.device("cpu"))
    mask = torch.ones(seq, seq, dtype=torch.bool).tril() if mask is None else mask
    assert mean_keys(seq, window) == pytest.approx(float(mask.sum()) / seq)


def test_windows_count_layer_by_layer() -> None:
    alternating = ModelConfig(**SMALL | {"sliding_window": 8, "window_pattern": "SF", "n_layers": 4})
    full = ModelConfig(**SMALL | {"n_layers": 4})
    width = 4 * full.n_heads * full.head_dim
    assert attention_flops(full, 64) == 4 * width * 32.5
    assert attention_flops(alternating, 64) == 2 * width * (32.5 + mean_keys(64, 8))
    assert flops(full, 64).next_token - flops(alternating, 64).next_token == 2 * width * (65 - 8)


def test_only_the_chosen_experts_count() -> None:
    """Qwen3-30B-A3B: 2 * (3.04 B matrix entries) and the attention; all its experts would make ten times that."""
    figures = flops(ModelConfig(**PRESETS["qwen3-30b-a3b"].shape), 1)
    assert figures.forward == pytest.approx(2 * (3_353_032_704 - 311_164_928), rel=1e-3)
