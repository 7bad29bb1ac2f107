"""Fine-tuning that starts from random weights says so."""

from __future__ import annotations

from typing import Any

import pytest

from sproutlm.config import Recipe
from sproutlm.pipeline.train import start_of


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "x",
        "data": {"train": [{"path": "rows.jsonl"}], "seq_len": 16},
        "model": {"dim": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
        "train": {"steps": 1, "batch_tokens": 16},
    }
    return Recipe.model_validate({**values, **changes})


@pytest.mark.parametrize(("stage", "loud"), [("sft", True), ("pretrain", False)])
def test_fine_tuning_from_random_weights_says_so_loudly(stage: str, loud: bool) -> None:
    """pitfall 39: with no checkpoint to start from, the loss falls all the same."""
    said: list[str] = []
    start_of(recipe(stage=stage, init_from="random"), 20, said.append)
    assert any("RANDOM weights" in sentence for sentence in said) is loud
