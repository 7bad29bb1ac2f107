"""What a config.json leaves out means here what it means in transformers; what is no value at all is a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from sproutlm.config.model import ModelConfig
from sproutlm.errors import SproutError
from sproutlm.families import FAMILIES, for_family
from sproutlm.families.foreign import recognise

NAMES = [family.name for family in FAMILIES]
WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers")


def file_of(family: str) -> dict[str, Any]:
    """A config.json of 40 layers, so that a border at the 28th shows."""
    parts: dict[str, Any] = {}
    if family in ("qwen3_moe", "mixtral", "qwen2_moe", "dots1"):
        shared = {"shared_dim": 16} if family in ("qwen2_moe", "dots1") else {}
        parts["moe"] = {"n_experts": 4, "expert_dim": 16, **shared}
    config = ModelConfig(family=family, vocab_size=90, dim=16, n_layers=40, n_heads=2, ffn_dim=32, **parts)
    return {name: it for name, it in for_family(family).config_to_hf(config).items() if name != "layer_types"}


def sparse_files(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = file_of(family)
    for left_out in whole:
        if left_out not in ("architectures", "model_type"):
            yield f"without {left_out}", {name: it for name, it in whole.items() if name != left_out}
    rest = {name: it for name, it in whole.items() if name not in WINDOWS}
    for values in itertools.product(("absent", True, False), ("absent", None, 8), ("absent", 0, 3, 99)):
        given = {name: it for name, it in zip(WINDOWS, values, strict=True) if it != "absent"}
        yield f"windows {given}", {**rest, **given}


@pytest.mark.parametrize("family", NAMES)
def test_what_a_file_leaves_out_means_what_it_means_in_transformers(family: str) -> None:
    """transformers 5.23: its own class fills in its defaults, and ours is to read the same from both files."""
    compared = 0
    for what, sparse in sparse_files(family):
        try:
            filled = CONFIG_MAPPING[sparse["model_type"]].from_dict(dict(sparse)).to_dict()
            here = recognise(sparse).family.config_from_hf(sparse)
            there = for_family(family).config_from_hf({**filled, "architectures": sparse["architectures"]})
        except (
            SproutError,
            StrictDataclassError,
            ValueError,
            TypeError,
        ):  # a size that must be given, or that does not go with the others
            continue
        assert here == there, what
        compared += 1
    assert compared > 30


VALUES: list[Any] = [
    None, "16", "x", -1, 0, 1.5, 1e300, 10**18, 10**30, float("nan"), float("inf"), [], {}, [1], {"a": 1}, [None],
    [[1]], True, {"rope_type": ["a"]}, {"rope_type": "yarn", "factor": "x"}, {"rope_type": "linear", "factor": -1},
]  # fmt: skip


@pytest.mark.parametrize("family", NAMES)
def test_any_value_in_any_field_is_read_or_refused_in_a_sentence(family: str) -> None:
    """A hand or another program may write anything; 10**18 layers must not be laid out to find that out."""
    whole = file_of(family)
    others = ("layer_types", "rope_scaling", "auto_map", "quantization_config", "mlp_only_layers", "n_inner", "n_group")
    for name, value in itertools.product([*whole, *WINDOWS, *others], VALUES):
        changed = {**whole, name: value}
        try:
            recognise(changed).family.config_from_hf(changed)
        except SproutError as error:
            assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 10**18}, "num_hidden_layers is 1000000000000000000; no model is that large.*10,000"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648; no model is that large"),
        ({"hidden_size": "16"}, "hidden_size is '16'; expected a number above 0"),
        ({"hidden_size": 16.5}, "hidden_size is 16.5; expected a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
        ({"rms_norm_eps": 5}, "rms_norm_eps is 5; expected a number above 0 and below 1"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'; expected a list of names"),
        ({"auto_map": 7}, "auto_map is 7; expected an object or null"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_was_expected(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SproutError, match=sentence):
        for_family("qwen3").config_from_hf({**file_of("qwen3"), **change})


def test_every_second_layer_of_a_qwen2_moe_has_the_window() -> None:
    """transformers' own rule for this family, where a file has no layer_types."""
    file = {**file_of("qwen2_moe"), "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}
    config = for_family("qwen2_moe").config_from_hf(file)
    assert [i for i in range(40) if config.window_of(i)] == [0, 2, 4]
