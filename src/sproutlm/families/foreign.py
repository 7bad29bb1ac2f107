"""Which family a config.json is of; also checkpoints that came with modelling code of their own, which is never run.

A foreign architecture that computes what a family of transformers computes is given that family's config.json, and is that
model from then on. One that none computes becomes a ``research`` model: it can be trained and used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SproutError
from .adapter import Family
from .layout import SHARED_LAYOUT
from .llama import LLAMA
from .moe import MATRICES, QWEN3_MOE, QWEN_EXPERTS, whole_above_0
from .qwen3 import QWEN3


@dataclass(frozen=True)
class Recognised:
    """``config`` is a config.json of ``family``: the file's own, or what a foreign one means. ``notes`` are sentences."""

    family: Family
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def exportable(self) -> bool:
        return self.family is not SHARED_MOE


def recognise(config: Mapping[str, Any]) -> Recognised:
    """The family of a parsed config.json; SproutError, with the nearest that is known, where there is none."""
    from . import FAMILIES, for_architecture

    architectures = config.get("architectures") or []
    if not architectures:  # some files leave it out
        named = [family.architecture for family in FAMILIES if family.model_type == config.get("model_type")]
        architectures = named or architectures
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise SproutError(f"config.json: architectures is {architectures!r}; expected one name")
    architecture = str(architectures[0])
    if architecture in FOREIGN:
        return FOREIGN[architecture](config)
    return Recognised(for_architecture(architecture, more=list(FOREIGN)), dict(config))


# --- MiniMind -------------------------------------------------------------------------------------------------------------

OWN = {"auto_map", "use_moe", "flash_attn", "inference_rope_scaling", "dropout"}
OLDER = {"n_routed_experts", "n_shared_experts", "scoring_func", "aux_loss_alpha", "seq_aux"}
NOT_RUN = "its own code (auto_map) was not run"


def _minimind(config: Mapping[str, Any]) -> Recognised:
    """Version 3 is Qwen3, with experts Qwen3-MoE; version 2 is Llama, with experts plain shared ones (no family's)."""
    old = "n_routed_experts" in config
    hf = {name: value for name, value in config.items() if name not in OWN}
    hf.setdefault("tie_word_embeddings", True)  # transformers leaves out what is its default
    hf.setdefault("rope_theta", 1e6)
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if hf.get("num_key_value_heads") is None:
        hf["num_key_value_heads"] = heads
    if hf.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        hf["head_dim"] = width // heads
    if old and config.get("inference_rope_scaling"):
        raise SproutError(
            "config.json: inference_rope_scaling is true; the stretching of MiniMind 2 is its own, and no family of "
            "transformers has it. Set it to false: the weights were trained without it"
        )
    if not config.get("inference_rope_scaling"):
        hf["rope_scaling"] = None  # the switch, not the numbers beside it, decides
    experts = bool(config.get("use_moe"))
    if old and experts:
        return Recognised(
            SHARED_MOE, _shared_moe(hf, expert_dim="intermediate_size"), [_kept("MiniMind 2 with experts")]
        )
    family = LLAMA if old else (QWEN3_MOE if experts else QWEN3)
    hf = {name: value for name, value in hf.items() if name not in OLDER}
    if not experts:
        for name in (
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "router_aux_loss_coef",
        ):
            hf.pop(name, None)
    hf |= {"architectures": [family.architecture], "model_type": family.model_type}
    return Recognised(
        family,
        hf,
        [f"MiniMind {2 if old else 3} computes what {family.architecture} does, and is read as it; {NOT_RUN}"],
    )


def _kept(what: str) -> str:
    return (
        f"{what} has plain shared experts beside a softmax router, which no family of transformers has; it can be used and "
        f"trained here, and cannot be exported (distil it into another family); {NOT_RUN}"
    )


# --- plain shared experts with softmax scores -----------------------------------------------------------------------------


def _deepseek(config: Mapping[str, Any]) -> Recognised:
    """DeepSeekMoE (arXiv:2401.06066): Llama's attention, shared experts, the first layers dense."""
    return Recognised(SHARED_MOE, _shared_moe(dict(config), expert_dim="moe_intermediate_size"), [_kept("DeepSeekMoE")])


def _shared_moe(hf: dict[str, Any], expert_dim: str) -> dict[str, Any]:
    for name, known in {"scoring_func": "softmax", "moe_layer_freq": 1, "topk_method": "greedy"}.items():
        if hf.get(name, known) != known:
            raise SproutError(f"config.json: {name} is {hf[name]!r}; only {known!r} is supported")
    hf = {name: value for name, value in hf.items() if name != "auto_map"}
    return hf | {
        "moe_intermediate_size": hf.get(expert_dim),
        "model_type": "",
        "architectures": [SHARED_MOE.architecture],
    }


def _read_shared(config: Mapping[str, Any]) -> dict[str, Any]:
    width, top_k = whole_above_0(config, "moe_intermediate_size"), whole_above_0(config, "num_experts_per_tok")
    moe = {
        "n_experts": whole_above_0(config, "n_routed_experts"),
        "top_k": top_k,
        "expert_dim": width,
        # Their code leaves a single expert's weight as it is.
        "normalize": bool(config.get("norm_topk_prob", False)) and top_k > 1,
        "scale": float(config.get("routed_scaling_factor") or 1.0),
        "shared_dim": (config.get("n_shared_experts") or 0) * width,
        "dense_layers": tuple(range(config.get("first_k_dense_replace") or 0)),
        "aux_weight": float(config.get("aux_loss_alpha") or 0.0),
    }
    return {"moe": moe, "qk_norm": False}


def _refuse_export(config: Any) -> dict[str, Any]:
    raise SproutError(_kept("this model"))


SHARED_MOE = Family(
    name="research",
    architecture="SharedMoE",
    model_type="",
    tensors=LLAMA.tensors
    | QWEN_EXPERTS
    | {f"layers.{{}}.mlp.shared.{m}.weight": f"model.layers.{{}}.mlp.shared_experts.{m}.weight" for m in MATRICES},
    fields=LLAMA.fields,
    fixed={"hidden_act": "silu"},
    read=_read_shared,
    write=_refuse_export,
    layout=SHARED_LAYOUT,
)

FOREIGN: dict[str, Callable[[Mapping[str, Any]], Recognised]] = {
    "MiniMindForCausalLM": _minimind,
    "DeepseekForCausalLM": _deepseek,
}
