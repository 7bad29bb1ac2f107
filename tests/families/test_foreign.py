"""Checkpoints with code of their own, read by table; and old files of known families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sproutlm.errors import CheckpointError, SproutError
from sproutlm.export import import_folder, load, read, save
from sproutlm.families.foreign import recognise

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}
NEAR: dict[str, Any] = {"rtol": 1.3e-6, "atol": 1e-5}
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
# What MiniMind 3 writes into config.json (transformers leaves out tie_word_embeddings where it is its default).
MINIMIND3: dict[str, Any] = {
    "architectures": ["MiniMindForCausalLM"], "model_type": "minimind",
    "auto_map": {"AutoConfig": "model_minimind.MiniMindConfig",
                 "AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
    **SIZES, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": None,
    "inference_rope_scaling": False, "flash_attn": True, "dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "use_moe": False, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48, "norm_topk_prob": True,
    "router_aux_loss_coef": 5e-4, "dtype": "float32",
}  # fmt: skip
MINIMIND2: dict[str, Any] = {
    **{name: value for name, value in MINIMIND3.items() if name not in ("head_dim", "num_experts", "moe_intermediate_size")},
    "rms_norm_eps": 1e-5, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 2,
    "scoring_func": "softmax", "aux_loss_alpha": 0.1, "seq_aux": True,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True}


def randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.25, generator=generator)
    return model.eval()


def folder_of(model: Any, folder: Path, config: dict[str, Any] | None = None) -> Path:
    """``model`` as a folder, with another config.json where one is given."""
    randomised(model).save_pretrained(folder)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model_minimind.py").write_text("raise SystemExit('this code was run')")
    return folder


def tokens() -> torch.Tensor:
    return torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(3))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


# --- MiniMind -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [False, True])
@torch.no_grad()
def test_minimind_3_becomes_the_family_that_computes_the_same(experts: bool, tmp_path: Path) -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48, "norm_topk_prob": True}
    fields = {**SIZES, **ROPE, "head_dim": 8, **(moe if experts else {})}
    theirs = Qwen3MoeForCausalLM(Qwen3MoeConfig(**fields)) if experts else Qwen3ForCausalLM(Qwen3Config(**fields))
    folder = folder_of(theirs, tmp_path / "minimind", {**MINIMIND3, "use_moe": experts})
    notes: list[str] = []
    report = import_folder(folder, tmp_path / "in", say=notes.append)
    assert report["family"] == ("qwen3_moe" if experts else "qwen3")
    assert any("MiniMind 3 computes what Qwen3" in note and "not run" in note for note in notes)
    expected = theirs(tokens()).logits
    torch.testing.assert_close(load(tmp_path / "in")[0](tokens()), expected, **NEAR)
    torch.testing.assert_close(load(folder)[0](tokens()), expected, **NEAR)  # and unimported
    # What was imported is transformers' own: no code, and the ids at which to stop are kept.
    back, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "in" / "model", trust_remote_code=False, output_loading_info=True
    )
    assert not any(info.values()) and back.config.eos_token_id == 2
    torch.testing.assert_close(back(tokens()).logits, expected, **EXACT)
    assert not (tmp_path / "in" / "model" / "model_minimind.py").exists()


@torch.no_grad()
def test_minimind_2_without_experts_is_llama(tmp_path: Path) -> None:
    theirs = LlamaForCausalLM(LlamaConfig(**{**SIZES, **ROPE, "rms_norm_eps": 1e-5}))
    folder = folder_of(theirs, tmp_path / "minimind", MINIMIND2)
    assert import_folder(folder, tmp_path / "in")["family"] == "llama"
    torch.testing.assert_close(load(tmp_path / "in")[0](tokens()), theirs(tokens()).logits, **NEAR)


def reference_experts(x: torch.Tensor, state: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """Plain shared experts beside two of four routed ones, token by token."""

    def mlp(name: str, row: torch.Tensor) -> torch.Tensor:
        gate, up, down = (state[f"{prefix}{name}.{m}_proj.weight"] for m in ("gate", "up", "down"))
        return down @ (F.silu(gate @ row) * (up @ row))

    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        weights, chosen = (state[f"{prefix}gate.weight"] @ row).softmax(0).topk(2)
        for weight, expert in zip(weights / weights.sum(), chosen.tolist(), strict=True):
            out[i] += weight * mlp(f"experts.{expert}", row)
        out[i] += mlp("shared_experts.0", row) + mlp("shared_experts.1", row)
    return out


@pytest.mark.parametrize("dtype", [None, "float32"])
@torch.no_grad()
def test_minimind_2_with_experts_can_be_used_and_says_that_it_cannot_be_exported(
    dtype: str | None, tmp_path: Path
) -> None:
    theirs = LlamaForCausalLM(LlamaConfig(**{**SIZES, **ROPE, "rms_norm_eps": 1e-5}))
    folder = folder_of(theirs, tmp_path / "minimind", {**MINIMIND2, "use_moe": True})

    def with_experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(9)
        for layer in range(2):
            prefix = f"model.layers.{layer}.mlp."
            dense = {m: state.pop(f"{prefix}{m}_proj.weight") for m in ("gate", "up", "down")}
            for expert in [*(f"experts.{i}" for i in range(4)), "shared_experts.0", "shared_experts.1"]:
                for matrix, weight in dense.items():
                    state[f"{prefix}{expert}.{matrix}_proj.weight"] = (
                        torch.randn(weight.shape, generator=generator) * 0.2
                    )
            state[f"{prefix}gate.weight"] = torch.randn(4, 32, generator=generator)
        return state

    rewrite(folder, with_experts)
    notes: list[str] = []
    report = import_folder(folder, tmp_path / "in", dtype=dtype, say=notes.append)
    assert report["family"] == "research" and any("cannot be exported" in note for note in notes)
    model, _ = load(tmp_path / "in")
    assert model.config.moe is not None and model.config.moe.shared_dim == 96
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected = reference_experts(x, load_file(folder / "model.safetensors"), "model.layers.1.mlp.")
    torch.testing.assert_close(model.layers[1].mlp(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SproutError, match="cannot be exported"):
        save(model, None, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inference_rope_scaling": True}, "inference_rope_scaling.*Set it to false"),
        ({"use_moe": True, "scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ],
)
def test_what_minimind_2_files_cannot_mean_is_named(change: dict[str, Any], expected: str) -> None:
    found_or_refused = {**MINIMIND2, **change}
    with pytest.raises(SproutError, match=expected):
        found = recognise(found_or_refused)
        found.family.config_from_hf(found.config)


def test_stretched_minimind_3_is_yarn_with_its_numbers() -> None:
    yarn = {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.0}
    config = {**MINIMIND3, "rope_scaling": {**yarn, "original_max_position_embeddings": 2048}}
    off = recognise(config)
    assert off.family.config_from_hf(off.config).rope_scaling is None  # the switch is off: the numbers do nothing
    on = recognise({**config, "inference_rope_scaling": True})
    scaling = on.family.config_from_hf(on.config).rope_scaling
    assert scaling is not None and (scaling.kind, scaling.factor, scaling.attention_factor) == ("yarn", 16, 1.0)


def test_code_of_ones_own_beside_a_known_architecture_is_refused() -> None:
    with pytest.raises(SproutError, match="auto_map names code"):
        found = recognise({**MINIMIND3, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
        found.family.config_from_hf(found.config)


# --- recognising ----------------------------------------------------------------------------------------------------------


def test_a_config_without_architectures_is_known_by_its_model_type() -> None:
    assert recognise({"model_type": "gpt2"}).family.name == "gpt2"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["MiniMindLM"]}, "'MiniMindLM' is not supported.*nearest is MiniMindForCausalLM"),
        ({"architectures": ["Dots2ForCausalLM"]}, "nearest is Dots1ForCausalLM"),
        ({"architectures": ["A", "B"]}, r"architectures is \['A', 'B'\]; expected one name"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures is 'Qwen3ForCausalLM'; expected one name"),
        ({"model_type": "bert"}, r"architectures is \[\]"),
    ],
)
def test_unknown_architecture_names_the_nearest(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(SproutError, match=expected):
        recognise(config)


# --- old files ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_openais_gpt2_layout_without_prefix_and_with_mask_buffers(tmp_path: Path) -> None:
    sizes = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes))
    folder = folder_of(theirs, tmp_path / "gpt2")

    def as_openai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
        for layer in range(2):
            state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
            state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return state

    rewrite(folder, as_openai)
    torch.testing.assert_close(load(folder)[0](tokens()), theirs(tokens()).logits, **NEAR)

    rewrite(folder, lambda state: state | {"transformer.wte.weight": state["wte.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"not part of this model: wte.weight \[61, 32\]"):
        load(folder)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if not n.startswith("transformer")})
    rewrite(folder, lambda state: state | {"h.0.attn.c_attn.weight": torch.zeros(32, 97)})
    with pytest.raises(CheckpointError, match=r"h.0.attn.c_attn.weight is \[32, 97\]; expected q, k and v"):
        load(folder)


@torch.no_grad()
def test_tied_head_may_be_stored_alone_twice_or_not_at_all(tmp_path: Path) -> None:
    theirs = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **ROPE, "use_sliding_window": False}))
    folder = folder_of(theirs, tmp_path / "qwen2")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    expected = theirs(tokens()).logits
    torch.testing.assert_close(load(folder)[0](tokens()), expected, **NEAR)
    rewrite(folder, lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    torch.testing.assert_close(load(folder)[0](tokens()), expected, **NEAR)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != "model.embed_tokens.weight"})
    torch.testing.assert_close(load(folder)[0](tokens()), expected, **NEAR)
    rewrite(folder, lambda state: state | {"model.embed_tokens.weight": state["lm_head.weight"] + 1})
    with pytest.raises(CheckpointError, match="lm_head.weight differs from the embedding"):
        read(folder)


def test_experts_that_are_missing_or_differ_in_shape_are_named(tmp_path: Path) -> None:
    moe = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "norm_topk_prob": True}
    folder = folder_of(Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**SIZES, **ROPE, "head_dim": 8, **moe})), tmp_path / "moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    rewrite(folder, lambda state: state | {name: torch.zeros(15, 32)})
    with pytest.raises(CheckpointError, match=r"experts.2.up_proj.weight is \[15, 32\].*experts.0.up_proj.weight is"):
        read(folder)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != name})
    with pytest.raises(CheckpointError, match="experts.2.up_proj.weight"):
        read(folder)
