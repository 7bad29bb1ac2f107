"""Shapes of models that people know by name, for ``model: {preset: NAME}`` and ``sprout plan NAME``.

``parameters`` is the published count: of the weights in the repository that ``source`` names, with a tied head counted
once (Qwen3's two smallest are stored with a second copy, which makes 751,632,384 of 0.6B's 596,049,920); where only a
rounded figure is published, that one, and how many of its digits count. Tests hold our own model against it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """``shape``: fields of a ``ModelConfig``; ``parameters``, ``active``: as published; ``source``: where.

    ``digits``: leading digits of ``parameters`` that the publisher gives; 0 = all of them. ``active``: parameters that
    one token meets in a mixture of experts, always rounded by the publishers (to ``active_digits``).
    """

    shape: Mapping[str, Any]
    parameters: int
    source: str
    digits: int = 0
    active: int | None = None
    active_digits: int = 2
    seq_len: int = 2048  # of the suggested recipe: the context it was pretrained with, at most 4,096


def _gpt2(dim: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    return {
        "family": "gpt2", "vocab_size": 50257, "dim": dim, "n_layers": n_layers, "n_heads": n_heads,
        "ffn_dim": 4 * dim, "max_seq_len": 1024, "tie_embeddings": True,
    }  # fmt: skip


def _dense(
    family: str, vocab_size: int, dim: int, n_layers: int, heads: tuple[int, int], ffn_dim: int, **more: Any
) -> dict[str, Any]:
    """``heads``: of queries, and of keys and values."""
    sizes = {"vocab_size": vocab_size, "dim": dim, "n_layers": n_layers, "n_heads": heads[0], "n_kv_heads": heads[1]}
    return {"family": family, **sizes, "ffn_dim": ffn_dim, **more}


_LONG = {"max_seq_len": 40960, "rope_theta": 1e6}
_QWEN3 = {"head_dim": 128, **_LONG}
_MINIMIND = {"max_seq_len": 32768, "rope_theta": 1e6, "tie_embeddings": True}
_SMOL = {"max_seq_len": 8192, "norm_eps": 1e-5, "tie_embeddings": True}


def _llama3(factor: float) -> dict[str, Any]:
    scaling = {
        "kind": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_seq_len": 8192,
    }  # fmt: skip
    return {"max_seq_len": 131072, "rope_theta": 5e5, "norm_eps": 1e-5, "rope_scaling": scaling}


_GEMMA2 = {
    "head_dim": 256, "max_seq_len": 8192, "attention_scale": 256**-0.5, "attention_softcap": 50.0,
    "logit_softcap": 30.0, "sliding_window": 4096, "window_pattern": "SF", "tie_embeddings": True,
}  # fmt: skip
_QWEN_MOE = {"n_experts": 128, "top_k": 8, "expert_dim": 768}
_QWEN15_MOE = {
    "n_experts": 60, "top_k": 4, "expert_dim": 1408, "normalize": False, "shared_dim": 5632, "shared_gate": True
}  # fmt: skip
_MIXTRAL = {"n_experts": 8, "top_k": 2, "expert_dim": 14336}

PRESETS: dict[str, Preset] = {
    # GPT-2: Radford et al. 2019 print 117M, 345M, 762M, 1542M; the weights hold what is given here.
    "gpt2": Preset(_gpt2(768, 12, 12), 124_439_808, "openai-community/gpt2", seq_len=1024),
    "gpt2-medium": Preset(_gpt2(1024, 24, 16), 354_823_168, "openai-community/gpt2-medium", seq_len=1024),
    "gpt2-large": Preset(_gpt2(1280, 36, 20), 774_030_080, "openai-community/gpt2-large", seq_len=1024),
    "gpt2-xl": Preset(_gpt2(1600, 48, 25), 1_557_611_200, "openai-community/gpt2-xl", seq_len=1024),
    # The small shapes that people train from nothing.
    "llama-26m": Preset(
        _dense("llama", 6400, 512, 8, (8, 2), 1408, norm_eps=1e-5, **_MINIMIND),
        26_000_000, "MiniMind2-Small's README: 26M", digits=2, seq_len=512,
    ),
    "minimind-3": Preset(
        _dense("qwen3", 6400, 768, 8, (8, 4), 2432, **_MINIMIND),
        64_000_000, "MiniMind's README: minimind-3, 64M", digits=2, seq_len=512,
    ),
    "minimind-3-moe": Preset(
        _dense("qwen3_moe", 6400, 768, 8, (8, 4), 2432, **_MINIMIND,
               moe={"n_experts": 4, "top_k": 1, "expert_dim": 2432}),
        198_000_000, "MiniMind's README: minimind-3-moe, 198M-A64M", digits=3, active=64_000_000, seq_len=512,
    ),
    "llama-215m": Preset(
        _dense("llama", 6144, 1024, 18, (16, 8), 2752, norm_eps=1e-5, max_seq_len=512, tie_embeddings=True),
        215_000_000, "happy-llm, chapter 5: 215M", digits=3, seq_len=512,
    ),
    # A shape of ours between the published ones; its own count, no publisher's.
    "1.2b": Preset(
        _dense("qwen3", 32768, 2048, 24, (16, 8), 5632, head_dim=128, max_seq_len=4096, rope_theta=1e6,
               tie_embeddings=True),
        1_200_000_000, "its name; this shape is ours", digits=2,
    ),
    # Qwen
    "qwen3-0.6b": Preset(_dense("qwen3", 151936, 1024, 28, (16, 8), 3072, **_QWEN3), 596_049_920, "Qwen/Qwen3-0.6B", seq_len=4096),
    "qwen3-1.7b": Preset(_dense("qwen3", 151936, 2048, 28, (16, 8), 6144, **_QWEN3), 1_720_574_976, "Qwen/Qwen3-1.7B", seq_len=4096),
    "qwen3-4b": Preset(_dense("qwen3", 151936, 2560, 36, (32, 8), 9728, **_QWEN3), 4_022_468_096, "Qwen/Qwen3-4B", seq_len=4096),
    "qwen3-8b": Preset(
        _dense("qwen3", 151936, 4096, 36, (32, 8), 12288, **_QWEN3, tie_embeddings=False),
        8_190_735_360, "Qwen/Qwen3-8B", seq_len=4096,
    ),
    "qwen3-30b-a3b": Preset(
        _dense("qwen3_moe", 151936, 2048, 48, (32, 4), 6144, **_QWEN3, tie_embeddings=False, moe=_QWEN_MOE),
        30_532_122_624, "Qwen/Qwen3-30B-A3B; active: Qwen3's model card, 3.3B", active=3_300_000_000, seq_len=4096,
    ),
    "qwen2.5-0.5b": Preset(
        _dense("qwen2", 151936, 896, 24, (14, 2), 4864, max_seq_len=32768, rope_theta=1e6, tie_embeddings=True),
        494_032_768, "Qwen/Qwen2.5-0.5B", seq_len=4096,
    ),
    "qwen2.5-1.5b": Preset(
        _dense("qwen2", 151936, 1536, 28, (12, 2), 8960, max_seq_len=131072, rope_theta=1e6, tie_embeddings=True),
        1_543_714_304, "Qwen/Qwen2.5-1.5B", seq_len=4096,
    ),
    "qwen1.5-moe-a2.7b": Preset(
        _dense("qwen2_moe", 151936, 2048, 24, (16, 16), 5632, max_seq_len=8192, rope_theta=1e6,
               tie_embeddings=False, moe=_QWEN15_MOE),
        14_315_784_192, "Qwen/Qwen1.5-MoE-A2.7B; active: its name, 2.7B", active=2_700_000_000,
    ),
    # Llama and its kin
    "llama2-7b": Preset(
        _dense("llama", 32000, 4096, 32, (32, 32), 11008, max_seq_len=4096, norm_eps=1e-5, tie_embeddings=False),
        6_738_415_616, "meta-llama/Llama-2-7b-hf", seq_len=4096,
    ),
    "llama3.1-8b": Preset(
        _dense("llama", 128256, 4096, 32, (32, 8), 14336, **_llama3(8.0), tie_embeddings=False),
        8_030_261_248, "meta-llama/Llama-3.1-8B", seq_len=4096,
    ),
    "llama3.2-1b": Preset(
        _dense("llama", 128256, 2048, 16, (32, 8), 8192, **_llama3(32.0), tie_embeddings=True),
        1_235_814_400, "meta-llama/Llama-3.2-1B", seq_len=4096,
    ),
    "llama3.2-3b": Preset(
        _dense("llama", 128256, 3072, 28, (24, 8), 8192, **_llama3(32.0), tie_embeddings=True),
        3_212_749_824, "meta-llama/Llama-3.2-3B", seq_len=4096,
    ),
    "smollm2-135m": Preset(_dense("llama", 49152, 576, 30, (9, 3), 1536, **_SMOL, rope_theta=1e5), 134_515_008, "HuggingFaceTB/SmolLM2-135M"),
    "smollm2-360m": Preset(_dense("llama", 49152, 960, 32, (15, 5), 2560, **_SMOL, rope_theta=1e5), 361_821_120, "HuggingFaceTB/SmolLM2-360M"),
    "smollm2-1.7b": Preset(
        _dense("llama", 49152, 2048, 24, (32, 32), 8192, **_SMOL, rope_theta=1.3e5), 1_711_376_384, "HuggingFaceTB/SmolLM2-1.7B"
    ),
    "tinyllama-1.1b": Preset(
        _dense("llama", 32000, 2048, 22, (32, 4), 5632, max_seq_len=2048, norm_eps=1e-5, tie_embeddings=False),
        1_100_048_384, "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ),
    # Mistral and Gemma
    "mistral-7b": Preset(
        _dense("mistral", 32000, 4096, 32, (32, 8), 14336, max_seq_len=32768, norm_eps=1e-5, sliding_window=4096,
               tie_embeddings=False),
        7_241_732_096, "mistralai/Mistral-7B-v0.1", seq_len=4096,
    ),
    "mixtral-8x7b": Preset(
        _dense("mixtral", 32000, 4096, 32, (32, 8), 14336, max_seq_len=32768, rope_theta=1e6, norm_eps=1e-5,
               tie_embeddings=False, moe=_MIXTRAL),
        46_702_792_704, "mistralai/Mixtral-8x7B-v0.1; active: arXiv:2401.04088 rounds up to 13B", active=13_000_000_000, seq_len=4096,
    ),
    "gemma-2b": Preset(
        _dense("gemma", 256000, 2048, 18, (8, 1), 16384, head_dim=256, max_seq_len=8192, tie_embeddings=True),
        2_506_172_416, "google/gemma-2b",
    ),
    "gemma2-2b": Preset(_dense("gemma2", 256000, 2304, 26, (8, 4), 9216, **_GEMMA2), 2_614_341_888, "google/gemma-2-2b"),
}  # fmt: skip

# Other names that people use for the same shapes.
ALIASES = {
    "gpt2-124m": "gpt2", "gpt2-355m": "gpt2-medium", "gpt2-774m": "gpt2-large", "gpt2-1558m": "gpt2-xl",
    "minimind-64m": "minimind-3", "minimind": "minimind-3", "minimind-moe": "minimind-3-moe", "215m": "llama-215m",
    "llama3-8b": "llama3.1-8b", "qwen3-moe-30b-a3b": "qwen3-30b-a3b",
}  # fmt: skip


def find(name: str) -> str | None:
    """The preset that ``name`` means: written large or small, with ``_`` for ``-``, by an alias. None = no such one."""
    plain = name.strip().lower().replace("_", "-")
    plain = ALIASES.get(plain, plain)
    return plain if plain in PRESETS else None


def shape_of(name: str) -> dict[str, Any]:
    """A preset's ``ModelConfig`` fields, its vocabulary included; KeyError where there is none of this name."""
    found = find(name)
    if found is None:
        raise KeyError(name)
    return dict(PRESETS[found].shape)


def nearest(name: str) -> str | None:
    """The likeliest preset meant by a name that is none."""
    close = difflib.get_close_matches(name.strip().lower(), [*PRESETS, *ALIASES], n=1, cutoff=0.5)
    return close[0] if close else None


def unknown(name: object) -> str:
    """The sentence about a preset that does not exist."""
    near = nearest(name) if isinstance(name, str) else None
    hint = f"did you mean {near!r}?" if near else "see: sprout plan --list"
    return f"{name!r} is no preset; {hint}"


@dataclass(frozen=True)
class Suggestion:
    """Where a recipe for a shape may begin. Sizes in tokens; a starting point from the literature, not a measurement."""

    seq_len: int
    batch_tokens: int
    tokens: int
    why: str = field(
        default="20 tokens per active parameter (Hoffmann et al. 2022, arXiv:2203.15556); "
        "batch size by model size as in GPT-3 (arXiv:2005.14165, table 2.1)",
    )


def suggest(name: str) -> Suggestion:
    preset = PRESETS[find(name) or name]
    size = preset.active or preset.parameters
    # GPT-3's table begins at 125 M with 0.5 M tokens; below it, an eighth of that.
    tiers = ((100_000_000, 65_536), (1_000_000_000, 524_288), (5_000_000_000, 1_048_576))
    batch = next((tokens for limit, tokens in tiers if size < limit), 2_097_152)
    return Suggestion(preset.seq_len, batch, 20 * size)
