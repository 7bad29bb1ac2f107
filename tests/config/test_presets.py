"""The presets are the models whose names they bear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sproutlm.config.load import dump_recipe, load_text
from sproutlm.config.model import ModelConfig
from sproutlm.config.presets import ALIASES, PRESETS, find, shape_of, suggest
from sproutlm.errors import RecipeError
from sproutlm.families import for_family
from sproutlm.plan import count

RECIPE = """\
name: one
data: {{train: rows.jsonl}}
model: {model}
train: {{steps: 1}}
"""


def model_of(text: str, *overrides: str) -> ModelConfig:
    recipe: Any = load_text(RECIPE.format(model=text), "r.yaml", Path("/r.yaml"), overrides).recipe
    return recipe.model


def rounds_to(number: int, published: int, digits: int) -> bool:
    """Some publishers round to the nearest, some down."""
    unit = 10 ** (len(str(published)) - digits)
    return round(number / unit) * unit == published or number // unit * unit == published


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameter_count_is_the_published_one(name: str) -> None:
    preset = PRESETS[name]
    counted = count(ModelConfig(**preset.shape))
    if preset.digits:
        assert rounds_to(counted.total, preset.parameters, preset.digits), counted.total
    else:
        assert counted.total == preset.parameters
    assert (preset.active is not None) == (counted.experts > 0)
    if preset.active is not None:
        assert rounds_to(counted.active, preset.active, preset.active_digits), counted.active


WITNESSED = ["gpt2", "minimind-3-moe", "llama-26m", "qwen3-0.6b", "qwen2.5-0.5b", "llama3.2-1b", "mistral-7b",
             "gemma-2b", "gemma2-2b", "mixtral-8x7b", "qwen1.5-moe-a2.7b"]  # fmt: skip


@pytest.mark.parametrize("name", WITNESSED)
def test_transformers_builds_the_same_number_of_parameters(name: str) -> None:
    """transformers 5.23, from the config.json that such a model is exported with, on the meta device."""
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**PRESETS[name].shape)
    hf = transformers.AutoConfig.for_model(**for_family(config.family).config_to_hf(config))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(hf)
    assert sum(p.numel() for p in theirs.parameters()) == count(config).total


def test_a_recipe_names_a_preset_and_changes_fields_of_it() -> None:
    config = model_of("{preset: qwen3-0.6b, n_layers: 2}")
    assert config == ModelConfig(**{**PRESETS["qwen3-0.6b"].shape, "n_layers": 2, "vocab_size": 0})
    assert model_of("{dim: 64}", "model.preset=gpt2", "model.dim=null", "model.dim=768").family == "gpt2"


def test_experts_are_changed_one_field_at_a_time() -> None:
    moe = model_of("{preset: mixtral-8x7b, moe: {n_experts: 4}}").moe
    assert moe is not None and (moe.n_experts, moe.top_k, moe.expert_dim) == (4, 2, 14336)
    assert PRESETS["mixtral-8x7b"].shape["moe"]["n_experts"] == 8  # the table itself is left alone


def test_the_vocabulary_stays_the_tokenizers_unless_it_is_given() -> None:
    assert model_of("{preset: gpt2}").vocab_size == 0
    assert model_of("{preset: gpt2, vocab_size: 50257}").vocab_size == 50257


def test_what_is_stored_does_not_depend_on_the_table() -> None:
    loaded = load_text(RECIPE.format(model="{preset: gpt2}"), "r.yaml", Path("/r.yaml"))
    text = dump_recipe(loaded.recipe)
    assert "preset" not in text
    assert load_text(text, "again.yaml", Path("/again.yaml")).recipe == loaded.recipe
    assert "preset" not in ModelConfig(preset="gpt2").model_dump()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{preset: qwen3-06b}", "r.yaml:3: model.preset: 'qwen3-06b' is no preset; did you mean 'qwen3-0.6b'?"),
        ("{preset: 6}", "r.yaml:3: model.preset: 6 is no preset; see: sprout plan --list"),
        ("{presets: gpt2}", "r.yaml:3: model.presets: unknown key (got 'gpt2'); did you mean 'preset'?"),
    ],
)
def test_an_unknown_preset_is_named_with_its_line_and_the_nearest(model: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        model_of(model)
    assert caught.value.problems == [message]


def test_names_are_taken_as_people_write_them() -> None:
    assert find("Qwen3_0.6B") == "qwen3-0.6b" and find("gpt2-1558M") == "gpt2-xl" and find("gpt5") is None
    assert set(ALIASES.values()) <= set(PRESETS) and not set(ALIASES) & set(PRESETS)
    with pytest.raises(KeyError):
        shape_of("gpt5")


@pytest.mark.parametrize("name", PRESETS)
def test_the_suggested_recipe_is_possible(name: str) -> None:
    suggested = suggest(name)
    assert suggested.seq_len <= ModelConfig(**PRESETS[name].shape).max_seq_len
    assert suggested.batch_tokens % suggested.seq_len == 0 and suggested.tokens >= 20 * suggested.batch_tokens


def test_a_depth_that_no_machine_could_even_list_is_refused_at_once() -> None:
    """Planning 10**8 blocks would build as many modules before anything could be said."""
    with pytest.raises(ValidationError, match="less than or equal to 16384"):
        ModelConfig(n_layers=10**8)
