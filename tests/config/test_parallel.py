"""The recipe's ``parallel`` section: what cannot be is refused with the recipe, before a process is started."""

from __future__ import annotations

import pytest

from sproutlm.config.load import load_recipe, shipped_recipes
from sproutlm.errors import RecipeError

TINY = shipped_recipes() / "tiny.yaml"  # 2 heads, rows of 128 tokens, 16 rows a step


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["parallel.dp=32"],
            "a step has 16 rows, fewer than parallel.dp=32; raise train.batch_tokens to at least 4096",
        ),
        (["parallel.dp=4", "parallel.shard=3"], "parallel.shard: 3 does not divide parallel.dp=4"),
        (["parallel.tp=4"], "2 heads (model.n_heads) cannot be split among parallel.tp * parallel.cp = 4 ranks"),
        (["parallel.tp=2", "parallel.cp=2"], "cannot be split among parallel.tp * parallel.cp = 4 ranks"),
        (["parallel.cp=3"], "128 cannot be split into parallel.cp * parallel.tp = 3 equal parts"),
        (["parallel.ep=2"], "this model has no experts; set parallel.ep to 1"),
        (["parallel.shard=2", "optimizer.state_dtype=int8"], "averages of a byte are kept in blocks"),
        (["parallel.shard=2", "train.compile=blocks"], "leave train.compile at auto or none"),
        (["parallel.pp=2"], "pp"),
        (["parallel.dp=0.5"], "parallel.dp"),
    ],
)
def test_what_cannot_be_is_a_sentence(settings: list[str], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(TINY, settings)
    assert sentence in str(error.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(TINY, ["parallel.dp=4", "parallel.shard=3", "parallel.tp=4"])
    assert len(error.value.problems) >= 3


@pytest.mark.parametrize("settings", [[], ["parallel.dp=2"], ["parallel.dp=4", "parallel.shard=0", "parallel.tp=2"]])
def test_what_can_be_is_taken(settings: list[str]) -> None:
    assert load_recipe(TINY, settings).recipe.parallel.timeout == 600
