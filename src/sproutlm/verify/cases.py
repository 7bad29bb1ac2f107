"""Tiny shapes that together use every option of every family: ours beside what transformers calls the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from ..config.model import ModelConfig, ResearchPart

VOCAB = 71
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "ffn_dim": 44, "max_seq_len": 64}


@dataclass(frozen=True)
class Case:
    """``ours``: fields of a ``ModelConfig``; ``theirs``: fields of a transformers config, None where none holds it.

    ``not_cached``: why generation with a cache cannot equal a whole pass; ``not_trained``: why training differs on
    purpose from that of transformers. Empty where it does not.
    """

    name: str
    ours: dict[str, Any]
    theirs: dict[str, Any] | None = field(default=None)
    not_cached: str = ""
    not_trained: str = ""

    @property
    def family(self) -> str:
        return self.ours["family"]

    def config(self) -> ModelConfig:
        return ModelConfig(**{**SIZES, **self.ours})

    def with_every_expert(self) -> Case:
        """The same with all experts chosen: in low precision a choice between two nearly equal ones may fall either way."""
        moe = self.ours.get("moe")
        if moe is None:
            return self
        theirs = None if self.theirs is None else {**self.theirs, "num_experts_per_tok": moe["n_experts"]}
        return replace(self, ours={**self.ours, "moe": {**moe, "top_k": moe["n_experts"]}}, theirs=theirs)


Part = tuple[dict[str, Any], dict[str, Any]]


def same(name: str, value: Any) -> Part:
    """A field that both sides call alike."""
    return {name: value}, {name: value}


def heads(n: int, kv: int, width: int = 0) -> Part:
    ours, theirs = {"n_heads": n, "n_kv_heads": kv}, {"num_attention_heads": n, "num_key_value_heads": kv}
    return (ours | {"head_dim": width}, theirs | {"head_dim": width}) if width else (ours, theirs)


def stretched(kind: str, original: int | None = 16, **numbers: Any) -> Part:
    ours = {"kind": kind, **numbers} | ({} if original is None else {"original_max_seq_len": original})
    theirs = {"rope_type": kind, "rope_theta": 10_000.0, **numbers}
    theirs |= {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_scaling": ours}, {"rope_parameters": theirs}


def windows(size: int, first: int, layers: int = 2) -> Part:
    """Layers from ``first`` on see ``size`` keys: Qwen's notation."""
    pattern = "" if first == 0 else "F" * first + "S" * (layers - first)
    return (
        {"sliding_window": size, "window_pattern": pattern},
        {"use_sliding_window": True, "sliding_window": size, "max_window_layers": first},
    )


EXPERTS: dict[str, Any] = {"n_experts": 6, "top_k": 2, "expert_dim": 24, "normalize": False, "balance": "aux"}


def experts(**changes: Any) -> Part:
    """Qwen's notation; Mixtral's is spelt out where it is used."""
    ours = {**EXPERTS, **changes}
    theirs = {
        "num_experts": ours["n_experts"],
        "num_experts_per_tok": ours["top_k"],
        "moe_intermediate_size": ours["expert_dim"],
        "norm_topk_prob": ours["normalize"],
    }
    if "shared_dim" in ours:
        theirs["shared_expert_intermediate_size"] = ours["shared_dim"]
    if "dense_layers" in ours:
        theirs["mlp_only_layers"] = list(ours["dense_layers"])
    return {"moe": ours}, theirs


def case(name: str, family: str, *parts: Part, **flags: Any) -> Case:
    ours: dict[str, Any] = {"family": family}
    theirs: dict[str, Any] = {}
    for more_ours, more_theirs in parts:
        ours, theirs = ours | more_ours, theirs | more_theirs
    return Case(name, ours, theirs, **flags)


GQA = heads(4, 2)
BIASES = same("attention_bias", True)
UNTIED: Part = ({"tie_embeddings": False}, {"tie_word_embeddings": False})
YARN = stretched("yarn", factor=4.0, beta_fast=8.0, beta_slow=2.0)


def theta(value: float) -> Part:
    return same("rope_theta", value)


def eps(value: float) -> Part:
    return {"norm_eps": value}, {"rms_norm_eps": value}


DENSE = (
    case("qwen3-gqa-tied", "qwen3", heads(4, 2, 8)),
    case("qwen3-mqa-untied-wide-heads", "qwen3", heads(4, 1, 20), theta(1e6), eps(1e-4), UNTIED),
    case("qwen3-mha-biases-odd-width", "qwen3", heads(3, 3, 6), theta(50.0), BIASES),
    case("qwen3-yarn", "qwen3", heads(4, 2, 16), YARN),
    case("qwen3-windows-everywhere", "qwen3", heads(4, 2, 8), windows(4, 0)),
    case("qwen3-windows-last-layer", "qwen3", heads(4, 2, 8), windows(3, 1)),
    case("llama-gqa-tied", "llama", GQA, theta(500_000.0), eps(1e-5)),
    case("llama-mha-untied-narrow-heads", "llama", heads(4, 4, 4), eps(1e-3), UNTIED),
    case("llama-mqa-biases", "llama", heads(8, 1), theta(100.0), BIASES),
    case("llama-mlp-biases", "llama", GQA, same("mlp_bias", True)),
    case("llama-linear", "llama", GQA, stretched("linear", None, factor=3.0)),
    case("llama-dynamic-short", "llama", GQA, stretched("dynamic", None, factor=3.0)),
    case(
        "llama-dynamic-long",
        "llama",
        GQA,
        ({"max_seq_len": 8}, {"max_position_embeddings": 8}),
        stretched("dynamic", None, factor=3.0),
        not_cached="dynamic scaling turns each key by the length at which it was written, here and in transformers",
    ),
    case("llama-llama3", "llama", GQA, stretched("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    case(
        "llama-yarn-attention-factor", "llama", GQA, stretched("yarn", factor=4.0, attention_factor=0.7, truncate=False)
    ),
    case("llama-yarn-mscale", "llama", GQA, stretched("yarn", factor=40.0, mscale=0.9, mscale_all_dim=0.5)),
    case("qwen2-gqa-tied", "qwen2", GQA, eps(1e-5)),
    case("qwen2-windows-untied", "qwen2", GQA, windows(5, 1), UNTIED),
    case("qwen2-yarn", "qwen2", GQA, YARN),
    case("mistral-window", "mistral", heads(4, 2, 12), same("sliding_window", 6)),
    case("mistral-full", "mistral", GQA, ({}, {"sliding_window": None})),
    case("mistral-linear", "mistral", GQA, same("sliding_window", 4), stretched("linear", None, factor=2.0)),
    case("gpt2", "gpt2", ({"n_heads": 4}, {"n_head": 4})),
    case(
        "gpt2-untied-exact-gelu",
        "gpt2",
        ({"n_heads": 2, "norm_eps": 1e-3}, {"n_head": 2, "layer_norm_epsilon": 1e-3}),
        ({"activation": "gelu"}, {"activation_function": "gelu"}),
        UNTIED,
    ),
    case("gpt2-silu", "gpt2", ({"n_heads": 4, "activation": "silu"}, {"n_head": 4, "activation_function": "silu"})),
    case("gemma-mqa", "gemma", heads(4, 1, 8)),
    case("gemma-biases", "gemma", heads(4, 4, 12), BIASES),
    case(
        "gemma2-caps-windows",
        "gemma2",
        heads(4, 2, 8),
        same("sliding_window", 5),
        ({"attention_scale": 12**-0.5}, {"query_pre_attn_scalar": 12}),
        ({"attention_softcap": 5.0}, {"attn_logit_softcapping": 5.0}),
        ({"logit_softcap": 3.0}, {"final_logit_softcapping": 3.0}),
    ),
    case(
        "gemma2-no-caps-biases",
        "gemma2",
        heads(4, 2, 8),
        BIASES,
        (
            {"sliding_window": 4, "window_pattern": "FS", "attention_scale": 8**-0.5},
            {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 8},
        ),
        ({"attention_softcap": 0.0}, {"attn_logit_softcapping": None}),
        ({"logit_softcap": 0.0}, {"final_logit_softcapping": None}),
    ),
)
MIXTURES = (
    case("qwen3-moe", "qwen3_moe", heads(4, 2, 8), experts()),
    case("qwen3-moe-normalised-dense-layer", "qwen3_moe", heads(4, 2, 8), experts(normalize=True, dense_layers=(0,))),
    case(
        "qwen3-moe-top-1",
        "qwen3_moe",
        heads(4, 2, 8),
        experts(normalize=True, top_k=1),
        not_trained="the router of one normalised expert learns here, and gets no gradient in transformers",
    ),
    case("qwen3-moe-biases-yarn-windows", "qwen3_moe", heads(4, 2, 8), experts(), BIASES, YARN, windows(5, 0)),
    case(
        "mixtral",
        "mixtral",
        GQA,
        theta(1e6),
        ({"moe": {**EXPERTS, "expert_dim": 48, "normalize": True}}, {"num_local_experts": 6, "num_experts_per_tok": 2}),
        ({"ffn_dim": 48}, {"intermediate_size": 48}),
    ),
    case(
        "mixtral-linear-window",
        "mixtral",
        GQA,
        same("sliding_window", 5),
        stretched("linear", None, factor=2.0),
        ({"moe": {**EXPERTS, "expert_dim": 40, "normalize": True}}, {"num_local_experts": 6, "num_experts_per_tok": 2}),
        ({"ffn_dim": 40}, {"intermediate_size": 40}),
    ),
    case("qwen2-moe", "qwen2_moe", GQA, experts(shared_dim=20, shared_gate=True)),
    case(
        "qwen2-moe-normalised-yarn-windows",
        "qwen2_moe",
        GQA,
        experts(shared_dim=28, shared_gate=True, normalize=True, dense_layers=(1,)),
        YARN,
        (
            {"sliding_window": 4, "window_pattern": "FS"},
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
        ),
    ),
)
DOTS: Part = (
    {"moe": {"n_experts": 6, "top_k": 2, "expert_dim": 16, "shared_dim": 32, "scale": 2.5, "dense_layers": (0,)}},
    {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 2}
    | {"routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "norm_topk_prob": True},
)
SHARED = (
    case("dots1", "dots1", heads(4, 2, 12), DOTS, ({}, {"sliding_window": None})),
    case(
        "dots1-biases-yarn-windows",
        "dots1",
        heads(4, 2, 16),
        DOTS,
        BIASES,
        YARN,
        ({"sliding_window": 4, "window_pattern": "FS"}, {"sliding_window": 4, "max_window_layers": 1}),
    ),
)
# Parts that no family of transformers has together: proved beside themselves only.
RESEARCH = (
    Case(
        "research-layernorm-part-of-rope-relu2",
        {"family": "research", "n_heads": 4, "n_kv_heads": 1, "norm": "layernorm", "rope_fraction": 0.5}
        | {"activation": "relu2", "gated": False, "residual_scale": 0.5, "qk_norm": False, "attention_bias": True},
    ),
    Case(
        "research-post-norms-caps-windows",
        {"family": "research", "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "post_norm": True, "norm_offset": True}
        | {"attention_scale": 0.3, "attention_softcap": 6.0, "logit_softcap": 4.0, "embedding_scale": 3.0}
        | {"sliding_window": 4, "window_pattern": "SSF", "qkv_bias": True, "mlp_bias": True, "dropout": 0.1}
        | {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 16, "beta_fast": 8.0}},
    ),
    Case(
        "research-learned-positions-sigmoid-experts",
        {"family": "research", "n_heads": 4, "positions": "learned", "tie_embeddings": False}
        | {
            "moe": {**EXPERTS, "score": "sigmoid", "scale": 2.5, "normalize": True, "shared_dim": 16, "balance": "bias"}
        },
    ),
    Case(
        "research-every-part",
        {"family": "research", "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "research": get_args(ResearchPart)},
    ),
    Case(
        "research-smear-values-experts-learned-positions",
        {"family": "research", "n_layers": 4, "n_heads": 4, "n_kv_heads": 1, "positions": "learned"}
        | {"research": ("smear", "value_embeddings"), "embedding_scale": 3.0, "tie_embeddings": False}
        | {"moe": EXPERTS, "sliding_window": 5, "window_pattern": "SF"},
    ),
)
CASES: dict[str, Case] = {one.name: one for one in (*DENSE, *MIXTURES, *SHARED, *RESEARCH)}


def cases_of(family: str) -> Iterator[Case]:
    return (one for one in CASES.values() if one.family == family)
