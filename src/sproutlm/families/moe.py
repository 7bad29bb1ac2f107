"""Families with experts: Qwen3-MoE, Mixtral, Qwen2-MoE, dots.llm1. Their attention is that of a dense family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.families import misfit_experts
from ..config.model import ModelConfig, MoEConfig
from ..errors import SproutError
from .adapter import REQUIRED, Family, Field
from .layout import EXPERTS_LAYOUT
from .mistral import MISTRAL
from .parts import windows_from_hf, windows_to_hf
from .qwen2 import QWEN2
from .qwen3 import QWEN3

MATRICES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
QWEN_EXPERTS = {
    "layers.{}.mlp.router.weight": "model.layers.{}.mlp.gate.weight",
    **{f"layers.{{}}.mlp.experts.{m}.weight": f"model.layers.{{}}.mlp.experts.{m}.weight" for m in MATRICES},
}
QWEN2_SHARED = {
    **{f"layers.{{}}.mlp.shared.{m}.weight": f"model.layers.{{}}.mlp.shared_expert.{m}.weight" for m in MATRICES},
    "layers.{}.mlp.shared_gate.weight": "model.layers.{}.mlp.shared_expert_gate.weight",
}
MIXTRAL_MEANS = {"ffn_dim": REQUIRED, "norm_eps": 1e-5}
MIXTRAL_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
MIXTRAL_EXPERTS = {
    "layers.{}.mlp.router.weight": "model.layers.{}.block_sparse_moe.gate.weight",
    **{
        f"layers.{{}}.mlp.experts.{ours}.weight": f"model.layers.{{}}.block_sparse_moe.experts.{theirs}.weight"
        for ours, theirs in MIXTRAL_NAMES.items()
    },
}


def whole_above_0(config: Mapping[str, Any], *names: str) -> int:
    """A number above 0 under the first of these names that is there."""
    name = next((name for name in names if config.get(name) is not None), names[0])
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise SproutError(f"config.json: {name} is {value!r}; expected a number above 0")
    return value


def _dense_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers without experts: those listed, and those between the sparse steps."""
    listed, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step") or 1
    layers = range(config["num_hidden_layers"])
    return tuple(i for i in layers if i in listed or (i + 1) % step)


def _read_qwen(config: Mapping[str, Any], alternate: bool = False) -> dict[str, Any]:
    experts = {
        "n_experts": whole_above_0(config, "num_experts", "num_local_experts"),
        "top_k": whole_above_0(config, "num_experts_per_tok"),
        "expert_dim": whole_above_0(config, "moe_intermediate_size"),
        "normalize": bool(config.get("norm_topk_prob", False)),
        "dense_layers": _dense_layers(config),
        "aux_weight": config.get("router_aux_loss_coef", 0.001),
    }
    return {"moe": experts, **windows_from_hf(config, config["num_hidden_layers"], alternate=alternate)}


def _read_qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of Qwen3-MoE every layer has the window where it is switched on: max_window_layers and layer_types say nothing."""
    return _read_qwen({**config, "max_window_layers": 0, "layer_types": None})


def _read_qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("qkv_bias", True) is not True:
        raise SproutError("config.json: qkv_bias is false; a Qwen2-MoE model is supported with biases on q, k and v")
    parts = _read_qwen(config, alternate=True)
    parts["moe"] |= {"shared_dim": whole_above_0(config, "shared_expert_intermediate_size"), "shared_gate": True}
    return parts


def _read_mixtral(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = {
        "n_experts": whole_above_0(config, "num_local_experts", "num_experts"),
        "top_k": whole_above_0(config, "num_experts_per_tok"),
        "expert_dim": whole_above_0(config, "intermediate_size"),
        "normalize": True,
        "aux_weight": config.get("router_aux_loss_coef", 0.001),
    }
    return {"moe": experts, **windows_from_hf(config, config["num_hidden_layers"], always=True, otherwise=None)}


def _experts(config: ModelConfig) -> MoEConfig:
    """The config's experts, once it is clear that a file of its family can hold them."""
    if config.moe is None:
        raise SproutError(f"a {config.family} file has experts, and this model has none (moe: null)")
    for name, sentence in misfit_experts(config.family, config.moe):
        raise SproutError(f"{name}: {sentence}")
    return config.moe


def _write_qwen(config: ModelConfig, moe: MoEConfig) -> dict[str, Any]:
    return {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_dim,
        "norm_topk_prob": moe.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(moe.dense_layers),
        "router_aux_loss_coef": moe.aux_weight,
        "output_router_logits": False,
        **windows_to_hf(config),
    }


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return _write_qwen(config, _experts(config))


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    moe = _experts(config)
    return {**_write_qwen(config, moe), "shared_expert_intermediate_size": moe.shared_dim, "qkv_bias": True}


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    moe = _experts(config)
    return {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.expert_dim,
        "router_aux_loss_coef": moe.aux_weight,
        "output_router_logits": False,
        **windows_to_hf(config, switch=False),
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    tensors=QWEN3.tensors | QWEN_EXPERTS,
    fields=QWEN3.fields,
    fixed={"hidden_act": "silu"},
    read=_read_qwen3,
    write=_write_qwen3,
    layout=EXPERTS_LAYOUT,
)
QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    model_type="qwen2_moe",
    tensors=QWEN2.tensors | QWEN_EXPERTS | QWEN2_SHARED,
    fields=QWEN2.fields,
    fixed={"hidden_act": "silu"},
    read=_read_qwen2,
    write=_write_qwen2,
    layout=EXPERTS_LAYOUT,
    heads_divide_width=True,
)
MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    tensors=MISTRAL.tensors | MIXTRAL_EXPERTS,
    fields=tuple(Field(f.theirs, f.ours, MIXTRAL_MEANS.get(f.ours, f.default)) for f in MISTRAL.fields),
    fixed={"hidden_act": "silu"},
    read=_read_mixtral,
    write=_write_mixtral,
    layout=EXPERTS_LAYOUT,
    theta=1e6,
)

# --- dots.llm1: DeepSeek's experts (plain shared ones, sigmoid scores, loss-free balancing) with Qwen3's attention ----------


def _read_dots1(config: Mapping[str, Any]) -> dict[str, Any]:
    width = whole_above_0(config, "moe_intermediate_size")
    experts = {
        "n_experts": whole_above_0(config, "n_routed_experts", "num_local_experts"),
        "top_k": whole_above_0(config, "num_experts_per_tok"),
        "expert_dim": width,
        "shared_dim": whole_above_0(config, "n_shared_experts") * width,
        "normalize": bool(config.get("norm_topk_prob", False)),
        "scale": config.get("routed_scaling_factor", 1.0),
        "dense_layers": tuple(range(config.get("first_k_dense_replace") or 0)),
    }
    # There is no switch: a window reaches the layers from max_window_layers on.
    stated = {"sliding_window": 4096, "max_window_layers": 62, **config, "use_sliding_window": True}
    return {"moe": experts, **windows_from_hf(stated, config["num_hidden_layers"])}


def _write_dots1(config: ModelConfig) -> dict[str, Any]:
    moe, windows = _experts(config), windows_to_hf(config)
    windows.pop("use_sliding_window")
    return {
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_dim,
        "n_shared_experts": moe.shared_dim // moe.expert_dim,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
        "first_k_dense_replace": len(moe.dense_layers),
        "output_router_logits": False,
        "sliding_window": None,
        "max_window_layers": config.n_layers,
        "layer_types": ["full_attention"] * config.n_layers,
        **windows,
    }


DOTS1 = Family(
    name="dots1",
    architecture="Dots1ForCausalLM",
    model_type="dots1",
    tensors=QWEN3.tensors
    | QWEN_EXPERTS
    | {"layers.{}.mlp.expert_bias": "model.layers.{}.mlp.gate.e_score_correction_bias"}
    | {f"layers.{{}}.mlp.shared.{m}.weight": f"model.layers.{{}}.mlp.shared_experts.{m}.weight" for m in MATRICES},
    fields=tuple(Field(f.theirs, f.ours, None) if f.ours == "head_dim" else f for f in QWEN3.fields),
    fixed={"hidden_act": "silu", "n_group": 1, "topk_group": 1},
    read=_read_dots1,
    write=_write_dots1,
    layout=EXPERTS_LAYOUT,
)
