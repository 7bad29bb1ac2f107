"""config.json both ways: every field that changes the computation is mapped or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sproutlm.config.families import SHAPES
from sproutlm.config.model import ModelConfig
from sproutlm.errors import SproutError
from sproutlm.families import FAMILIES, for_architecture, for_family
from sproutlm.families.adapter import expected_shapes

HF: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
LLAMA = {**HF, "model_type": "llama"}


def test_old_and_new_rope_notation_mean_the_same() -> None:
    family = for_architecture("Qwen3ForCausalLM")
    old = family.config_from_hf({**HF, "rope_theta": 5000.0, "rope_scaling": None})
    new = family.config_from_hf({**HF, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})
    both = family.config_from_hf(
        {**HF, "rope_theta": 5000, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
    )
    assert old == new == both
    assert old.rope_theta == 5000.0
    assert family.config_from_hf(HF).rope_theta == 10_000.0


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_config_survives_the_way_there_and_back(name: str) -> None:
    config = ModelConfig(
        family=name, vocab_size=50, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, ffn_dim=70,
        max_seq_len=99, rope_theta=123.0, norm_eps=3e-6, attention_bias=True, tie_embeddings=False,
    )  # fmt: skip
    hf = for_family(name).config_to_hf(config, eos_token_id=[4, 0], pad_token_id=1)
    assert for_architecture(hf["architectures"][0]).config_from_hf(hf) == config
    # Older transformers and other programs read the one notation, transformers 5 the other.
    assert hf["rope_theta"] == hf["rope_parameters"]["rope_theta"] == 123.0
    assert hf["dtype"] == hf["torch_dtype"] == "float32"
    assert (hf["eos_token_id"], hf["pad_token_id"], hf["bos_token_id"]) == ([4, 0], 1, None)


def test_absent_fields_take_the_architectures_own_defaults() -> None:
    sparse = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "head_dim", "tie_word_embeddings")}
    config = for_architecture("LlamaForCausalLM").config_from_hf(sparse)
    assert (config.n_kv_heads, config.head_dim, config.tie_embeddings) == (4, 6, False)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, ["rope_scaling", "longrope", "yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling", "linear", "no factor"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 0.5}}, ["factor"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters", "by layer"]),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, ["rope_theta", "differs"]),
        ({"rope_theta": -1}, ["rope_theta"]),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}}, ["partial_rotary_factor"]),
        ({"partial_rotary_factor": 0.5}, ["rope_fraction=1.0", "qwen3"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"use_sliding_window": True, "sliding_window": -4, "max_window_layers": 1}, ["sliding_window", "-4"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "linear_attention"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "1 layers", "2"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, ["auto_map"]),
        ({"model_type": "qwen2"}, ["model_type", "qwen2", "qwen3"]),
        ({"head_dim": None}, ["head_dim", "missing"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "above 0"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers"]),
        ({"num_key_value_heads": 3}, ["n_kv_heads=3"]),
    ],
)
def test_unsupported_option_is_refused_by_name(change: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(SproutError) as error:
        for_architecture("Qwen3ForCausalLM").config_from_hf({**HF, **change})
    for name in names:
        assert name in str(error.value)


def test_windows_of_every_notation_become_a_pattern() -> None:
    family = for_architecture("Qwen3ForCausalLM")
    kinds = {"S": "sliding_attention", "F": "full_attention"}

    def pattern(layers: str) -> tuple[int, str]:
        change = {"num_hidden_layers": len(layers), "sliding_window": 64, "layer_types": [kinds[x] for x in layers]}
        config = family.config_from_hf({**HF, **change})
        assert "".join("S" if config.window_of(i) else "F" for i in range(len(layers))) == layers
        assert family.config_from_hf(family.config_to_hf(config)) == config
        return config.sliding_window, config.window_pattern

    assert pattern("SFSF") == (64, "SF")
    assert pattern("SSSFSSS") == (64, "SSSF")
    assert pattern("FFSS") == (64, "FFSS")
    assert pattern("SSS") == (64, "")
    assert pattern("FFF") == (0, "")
    old = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    assert family.config_from_hf({**HF, **old}).window_pattern == "FS"


def test_sliding_window_that_reaches_no_layer_is_no_obstacle() -> None:
    family = for_architecture("Qwen3ForCausalLM")
    idle = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    assert family.config_from_hf({**HF, **idle}) == family.config_from_hf(HF)
    assert family.config_from_hf({**HF, "use_sliding_window": False, "sliding_window": 64}) == family.config_from_hf(HF)


def test_width_that_transformers_would_refuse_is_refused_before_it_is_written() -> None:
    config = ModelConfig(family="llama", vocab_size=9, dim=20, n_heads=3, head_dim=4)
    with pytest.raises(SproutError, match="dim=20 is not a multiple of n_heads=3"):
        for_family("llama").config_to_hf(config)


def test_a_scale_that_a_gemma2_file_would_round_is_refused() -> None:
    shape = {"family": "gemma2", "vocab_size": 9, "dim": 16, "n_heads": 2, "n_layers": 2}
    hf = for_family("gemma2").config_to_hf(ModelConfig(**shape, attention_scale=144**-0.5))
    assert hf["query_pre_attn_scalar"] == 144
    with pytest.raises(SproutError, match="attention_scale as 1 / sqrt.*0.3 is none; choose 0.301511"):
        for_family("gemma2").config_to_hf(ModelConfig(**shape, attention_scale=0.3))


def test_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SproutError, match="Qwen3NextForCausalLM.*Qwen3ForCausalLM, LlamaForCausalLM.*nearest is Qwen3ForCausalLM"
    ):
        for_architecture("Qwen3NextForCausalLM")
    with pytest.raises(SproutError, match="gpt3.*qwen3, llama.*nearest is gpt2"):
        for_family("gpt3")


# --- tensors -------------------------------------------------------------------------------------------------------


def state_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    """A Hugging Face state of this config, every tensor different."""
    ours = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(expected_shapes(config).items())}
    return dict(for_family(config.family).state_to_hf(config, ours))


CONFIG = ModelConfig(vocab_size=12, dim=8, n_layers=12, n_heads=2, ffn_dim=16)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_tensor_has_one_place_and_comes_back_unchanged(family: str) -> None:
    """Twelve layers: 1, 10 and 11 must not be confused. Every tensor is different, and no value changes."""
    open_parts: dict[str, Any] = {part: True for part in ("attention_bias", "mlp_bias") if part in SHAPES[family].open}
    if "moe" in SHAPES[family].open:
        shared = {"shared_dim": 16} if family in ("qwen2_moe", "dots1") else {}
        open_parts["moe"] = {"n_experts": 11, "expert_dim": 16, **shared}
    config = ModelConfig(family=family, vocab_size=12, dim=8, n_layers=12, n_heads=2, ffn_dim=16, **open_parts)
    hf = state_of(config)
    back = for_family(family).state_from_hf(config, hf)
    assert list(back) == list(expected_shapes(config))
    for i, tensor in enumerate(back.values()):
        assert torch.equal(tensor, torch.full_like(tensor, float(i)))


def test_a_tensor_that_only_needs_another_name_is_not_copied() -> None:
    hf = state_of(CONFIG)
    back = for_family("qwen3").state_from_hf(CONFIG, hf)
    assert back["layers.11.mlp.up_proj.weight"] is hf["model.layers.11.mlp.up_proj.weight"]


def test_missing_extra_and_misshapen_tensors_are_all_named_at_once() -> None:
    """pitfall 32: half of a model missing without a word."""
    hf = state_of(CONFIG)
    del hf["model.layers.3.mlp.up_proj.weight"]
    hf["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(8)
    hf["model.norm.weight"] = torch.zeros(9)
    hf["model.layers.1.mlp.down_proj.weight"] = torch.zeros(8, 16, dtype=torch.int8)
    with pytest.raises(SproutError) as error:
        for_family("qwen3").state_from_hf(CONFIG, hf)
    sentence = str(error.value)
    assert "1 tensor missing: model.layers.3.mlp.up_proj.weight [16, 8]" in sentence
    assert "not part of this model: model.layers.0.self_attn.q_proj.bias [8]" in sentence
    assert "model.norm.weight is [9], expected [8]" in sentence
    assert "model.layers.1.mlp.down_proj.weight is int8" in sentence


def test_many_faults_are_counted_and_the_first_few_named() -> None:
    hf = {name: tensor for name, tensor in state_of(CONFIG).items() if "self_attn" not in name}
    with pytest.raises(SproutError, match=r"72 tensors missing: .*and 64 more"):
        for_family("qwen3").state_from_hf(CONFIG, hf)


def test_weights_of_another_depth_are_told_at_once() -> None:
    with pytest.raises(SproutError, match="config.json says 12 layers, and the weights are 1 tensors in all"):
        for_family("qwen3").state_from_hf(CONFIG, {"model.embed_tokens.weight": torch.zeros(12, 8)})


def test_our_own_state_is_checked_before_it_is_written() -> None:
    state = {name: torch.zeros(shape) for name, shape in expected_shapes(CONFIG).items()}
    state.pop("norm.weight")
    with pytest.raises(SproutError, match=r"1 tensor missing: norm.weight \[8\]"):
        for_family("qwen3").state_to_hf(CONFIG, state)


def test_tied_head_stored_twice_is_accepted_only_if_equal() -> None:
    family, hf = for_family("qwen3"), state_of(CONFIG)
    hf["lm_head.weight"] = hf["model.embed_tokens.weight"].clone()
    assert "lm_head.weight" not in family.state_from_hf(CONFIG, hf)
    hf["lm_head.weight"][3, 2] += 1
    with pytest.raises(SproutError, match="lm_head.weight differs from the embedding.*tie_word_embeddings"):
        family.state_from_hf(CONFIG, hf)


def test_rotary_frequencies_of_old_files_are_passed_over() -> None:
    config = ModelConfig(family="llama", vocab_size=12, dim=8, n_layers=1, n_heads=2, ffn_dim=16)
    hf = state_of(config)
    hf["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    assert set(for_family("llama").state_from_hf(config, hf)) == set(expected_shapes(config))
