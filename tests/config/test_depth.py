"""``depth``, the one dial: its table stands still, grows as it should, and gives way to what a recipe says itself.

The golden table is rewritten on purpose with ``python tests/config/test_depth.py`` (see CONTRIBUTING.md, "When numbers may change").
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config import dump_recipe
from sproutlm.config.depth import ANCHORS, MOST, TOKENS_PER_PARAMETER, Dial, dial
from sproutlm.config.load import load_recipe, load_text, shipped_recipes
from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import Recipe
from sproutlm.errors import RecipeError
from sproutlm.plan import count

GOLDEN = Path(__file__).with_name("depth.json")
DEPTHS = (2, 4, 6, 8, 12, 16, 20, 24)
VOCABULARY, SEQ_LEN = 6400, 256
RECIPE = """\
name: one
data: {train: rows.jsonl}
model: {depth: 6}
"""


def table() -> list[dict[str, Any]]:
    return [asdict(dial(depth, VOCABULARY, SEQ_LEN)) for depth in DEPTHS]


def load(*overrides: str, text: str = RECIPE) -> Any:
    return load_text(text, "r.yaml", Path("/r.yaml"), overrides)


def test_the_table_is_the_committed_one() -> None:
    assert table() == json.loads(GOLDEN.read_text())


EVERY: list[Dial] = [dial(depth, VOCABULARY, SEQ_LEN) for depth in range(1, MOST + 1)]


def test_everything_grows_or_falls_with_depth() -> None:
    for one, next_ in zip(EVERY, EVERY[1:], strict=False):
        assert one.parameters < next_.parameters and one.tokens < next_.tokens
        assert one.dim <= next_.dim and one.batch_tokens <= next_.batch_tokens
        for rate in ("lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay"):
            assert getattr(one, rate) >= getattr(next_, rate), (next_.depth, rate)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: str(one.depth))
def test_sizes_are_those_that_hardware_likes(one: Dial) -> None:
    assert one.n_layers == one.depth and one.n_heads * one.head_dim == one.dim
    assert one.head_dim in (64, 128) and one.n_heads % one.n_kv_heads == 0 and one.ffn_dim % 64 == 0
    assert one.batch_tokens & (one.batch_tokens - 1) == 0, "a power of two"
    assert one.tokens == one.steps * one.batch_tokens
    assert 0 <= one.tokens - TOKENS_PER_PARAMETER * one.parameters < one.batch_tokens


@pytest.mark.parametrize("depth", [1, 3, 7, 12, 16, 19])
def test_the_parameters_are_those_of_the_model(depth: int) -> None:
    """Counted by building the model, without values."""
    for tied in (True, False):
        one = dial(depth, VOCABULARY, given={"tie_embeddings": tied})
        counted = count(ModelConfig(depth=depth, vocab_size=VOCABULARY, tie_embeddings=tied))
        assert one.parameters == counted.total
        assert one.embedding_parameters == counted.embedding + counted.head


def test_near_the_sizes_of_our_recipes_it_says_what_they_say() -> None:
    poems = load_recipe(shipped_recipes() / "poems-zh.yaml").recipe
    assert isinstance(poems, Recipe) and poems.model is not None
    one = dial(3, poems.tokenizer.vocab_size, poems.data.seq_len)
    assert (one.dim, one.n_heads, one.n_kv_heads, one.ffn_dim) == (
        poems.model.dim, poems.model.n_heads, poems.model.n_kv_heads, poems.model.ffn_dim,
    )  # fmt: skip
    assert one.batch_tokens == poems.train.batch_tokens
    for name in ("lr", "embedding_lr", "scalar_lr", "weight_decay"):
        assert getattr(one, name) == getattr(poems.optimizer, name), name
    tiny = load_recipe(shipped_recipes() / "tiny.yaml").recipe
    assert isinstance(tiny, Recipe)
    assert (dial(1, 1000).batch_tokens, dial(1, 1000).lr) == (tiny.train.batch_tokens, tiny.optimizer.lr)


def test_every_point_of_the_table_comes_out_as_it_stands() -> None:
    for anchor in ANCHORS:
        one = dial(anchor.width // 64, VOCABULARY, SEQ_LEN)
        assert one.dim == anchor.width and one.batch_tokens == anchor.batch_tokens
        for name in ("lr", "embedding_lr", "scalar_lr", "weight_decay"):
            assert getattr(one, name) == getattr(anchor, name), (anchor, name)


def test_another_batch_scales_every_rate_by_its_root() -> None:
    own = dial(6, VOCABULARY)
    quarter = dial(6, VOCABULARY, batch_tokens=own.batch_tokens // 4)
    for name in ("lr", "embedding_lr", "scalar_lr"):
        assert getattr(quarter, name) == pytest.approx(getattr(own, name) / 2, rel=0.05), "two digits are kept"
    assert quarter.lr == 0.01 and quarter.steps == pytest.approx(4 * own.steps, abs=4)


# --- in a recipe ------------------------------------------------------------------------------------------------------------


def test_a_recipe_of_three_lines_is_whole() -> None:
    recipe, one = load().recipe, dial(6, VOCABULARY, 256)
    assert recipe.model.model_dump(include=set(asdict(one))) == {
        name: value for name, value in asdict(one).items() if name in ModelConfig.model_fields and name not in ("depth", "vocab_size")
    } | {"vocab_size": 0}  # fmt: skip
    assert (recipe.optimizer.lr, recipe.optimizer.embedding_lr, recipe.optimizer.scalar_lr) == (
        one.lr, one.embedding_lr, one.scalar_lr,
    )  # fmt: skip
    assert (recipe.train.batch_tokens, recipe.train.tokens) == (one.batch_tokens, one.tokens)


def test_what_depth_chose_is_said_and_what_was_given_is_not() -> None:
    (note,) = load("optimizer.lr=0.01", "train.steps=7", "model.dim=256", "data.seq_len=1024").notes
    for part in (
        "model.depth=6 chose",
        "model.n_layers=6",
        "model.n_heads=4",
        "train.batch_tokens=",
        "model.max_seq_len=1024",
    ):
        assert part in note, part
    for part in ("optimizer.lr=", "train.tokens=", "model.dim="):
        assert part not in note, part


def test_another_family_keeps_its_own_proportions() -> None:
    loaded = load("model.family=gpt2")
    assert loaded.recipe.model.ffn_dim == 4 * loaded.recipe.model.dim == 1536
    assert "model.ffn_dim=1536" in loaded.notes[0]


def test_what_the_recipe_gives_comes_first() -> None:
    recipe = load("model.dim=256", "model.n_layers=3", "train.epochs=2", "optimizer.scalar_lr=0.001").recipe
    assert (recipe.model.dim, recipe.model.n_layers, recipe.model.n_heads, recipe.model.ffn_dim) == (256, 3, 4, 704)
    assert (recipe.train.tokens, recipe.train.epochs, recipe.optimizer.scalar_lr) == (None, 2, 0.001)
    assert recipe.optimizer.embedding_lr == dial(4, VOCABULARY).embedding_lr, "of the width that was given"
    assert load("model.n_heads=3").recipe.model.head_dim == 128


def test_what_is_stored_does_not_depend_on_the_table() -> None:
    recipe = load().recipe
    text = dump_recipe(recipe)
    assert "depth" not in text
    again = load_text(text, "again.yaml", Path("/again.yaml"))
    assert again.recipe == recipe and not again.notes


def test_a_stage_may_turn_the_dial_too() -> None:
    text = (
        "name: all\nstages:\n"
        "  - {name: a, do: train, recipe: {data: {train: rows.jsonl}, model: {depth: 2}, train: {steps: 3}}}\n"
    )
    loaded = load(text=text)
    assert "model.depth=2 chose" in loaded.notes[0]
    with pytest.raises(RecipeError, match=r"stages\.0\.recipe\.model\.depth: must be a whole number"):
        load("stages.a.recipe.model.depth=99", text=text)


@pytest.mark.parametrize("depth", ["0", "-1", "1000", "x", "2.5", "true", "[3]"])
def test_what_is_no_depth_is_refused_in_one_sentence(depth: str) -> None:
    for more in ([], ["train.steps=3"]):
        with pytest.raises(RecipeError) as caught:
            load(f"model.depth={depth}", *more)
        (problem,) = caught.value.problems
        assert f"model.depth: must be a whole number from 1 to {MOST}" in problem


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.preset=gpt2"], "depth and preset each give a whole shape"),
        (["init_from=runs/x"], "remove model.depth"),
        (["optimizer.name=adamw"], "the rates that depth chooses are Muon's"),
        (["tokenizer.path=runs/x"], "give model.vocab_size"),
        (["model.family=qwen3_moe", "model.moe={n_experts: 4, expert_dim: 64}"], "mixture of experts"),
    ],
)
def test_what_depth_cannot_decide_is_asked_for(settings: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(*settings)
    (problem,) = caught.value.problems
    assert words in problem


def test_what_was_asked_for_is_then_enough() -> None:
    assert load("optimizer.name=adamw", "optimizer.lr=0.002").recipe.optimizer.lr == 0.002
    assert load("tokenizer.path=runs/x", "train.steps=9").recipe.train.steps == 9
    assert load("init_from=random").recipe.model.dim == 384


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(table(), indent=1) + "\n")
