"""Shapes that llama.cpp can run, tiny and random, and the strings that its tokenizer is compared on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sproutlm
from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.tokenizer.probe_texts import HARD_TEXTS, SAMPLES, random_texts

MOE: Any = {"n_experts": 6, "top_k": 2, "expert_dim": 32}
YARN: Any = {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 32}
GQA: Any = {"n_heads": 4, "n_kv_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "llama-untied": {"family": "llama", **GQA, "tie_embeddings": False},
    "llama-biases": {"family": "llama", **GQA, "attention_bias": True, "mlp_bias": True},
    "llama-llama3": {
        "family": "llama",
        "n_heads": 4,
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 16},
    },
    "llama-linear": {"family": "llama", "n_heads": 4, "rope_scaling": {"kind": "linear", "factor": 3.0}},
    "llama-yarn": {"family": "llama", "n_heads": 4, "rope_scaling": YARN},
    "qwen3-yarn-attention": {"family": "qwen3", "n_heads": 4, "rope_scaling": {**YARN, "attention_factor": 0.7}},
    "qwen3-wide-heads": {"family": "qwen3", **GQA, "head_dim": 24},
    "qwen2": {"family": "qwen2", **GQA},
    "mistral": {"family": "mistral", **GQA, "head_dim": 12},
    "gpt2": {"family": "gpt2", "n_heads": 4},
    "gpt2-untied": {"family": "gpt2", "n_heads": 4, "tie_embeddings": False},
    "gemma": {"family": "gemma", "n_heads": 4, "n_kv_heads": 1, "head_dim": 16},
    "gemma2": {"family": "gemma2", **GQA, "head_dim": 16, "sliding_window": 16, "window_pattern": "SF"},
    "qwen3-moe": {"family": "qwen3_moe", **GQA, "moe": MOE},
    "mixtral": {"family": "mixtral", **GQA, "ffn_dim": 32, "moe": MOE},
    "qwen2-moe": {
        "family": "qwen2_moe",
        "n_heads": 4,
        "moe": {**MOE, "normalize": False, "shared_dim": 64, "shared_gate": True},
    },
    "dots1": {"family": "dots1", "n_heads": 4, "moe": {**MOE, "shared_dim": 64, "dense_layers": (0,), "scale": 1.5}},
    "dots1-tied-plain-weights": {
        "family": "dots1",
        "n_heads": 4,
        "tie_embeddings": True,
        "moe": {**MOE, "shared_dim": 32, "normalize": False},
    },
}


def config_of(changes: dict[str, Any], vocab_size: int) -> ModelConfig:
    sizes = {"vocab_size": vocab_size, "dim": 64, "n_layers": 2, "ffn_dim": 96, "max_seq_len": 128}
    return ModelConfig(**{**sizes, **changes})


def random_model(config: ModelConfig) -> Transformer:
    """Every parameter random and none zero or one, sharp enough that the likeliest token is clearly so."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.5 if "embed" in name else 0.2, generator=generator)
    return model


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], n: int, never: list[int]) -> list[int]:
    row = list(ids)
    for _ in range(n):
        logits: Tensor = model(torch.tensor([row]))[0, -1]
        logits[never] = float("-inf")
        row.append(int(logits.argmax()))
    return row[len(ids) :]


def thousand_strings() -> list[str]:
    """Chinese, English, code, emoji, and random characters of all planes."""
    source = random.Random(0)
    files = sorted(Path(sproutlm.__file__).parent.rglob("*.py"))
    code = [file.read_text("utf-8") for file in files[:: max(1, len(files) // 60)]]
    chinese = [text for text in code if "一" in text] or [SAMPLES["zh"]]
    emoji = "😀👩\u200d👩\u200d👧👍🏽🇨🇳❤️🏳️\u200d🌈 ab好，１2\n\t"

    def part(texts: list[str]) -> str:
        text = source.choice(texts)
        start = source.randrange(max(1, len(text) - 20))
        return text[start : start + source.randint(1, 120)]

    strings = [*HARD_TEXTS.values(), *SAMPLES.values(), *random_texts(150)]
    strings += [part([*chinese, SAMPLES["zh"] * 3]) for _ in range(250)]
    strings += [part([SAMPLES["en"] * 3]) for _ in range(150)]
    strings += ["".join(source.choices(emoji, k=source.randint(1, 30))) for _ in range(200)]
    strings += [part(code) for _ in range(1000 - len(strings))]
    return strings
