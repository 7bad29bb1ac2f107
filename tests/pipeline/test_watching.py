"""What MFU is measured against: a peak that is known, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sproutlm.config import Recipe
from sproutlm.pipeline import watching
from sproutlm.plan.flops import flops


@pytest.fixture
def recipe() -> Recipe:
    fields: dict[str, Any] = {
        "name": "small",
        "data": {"train": [{"path": "/data/a.jsonl"}], "seq_len": 64},
        "model": {"vocab_size": 300, "dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
        "train": {"steps": 40, "batch_tokens": 256, "trackers": ["tensorboard"], "tracker_name": "mine"},
    }
    return Recipe.model_validate(fields)


@pytest.mark.parametrize(
    ("name", "compute", "expected"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H200", torch.float32, None),  # which of its units float32 uses is a setting
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),  # half of what the card of that name does
    ],
)
def test_a_card_is_known_by_its_whole_name_or_not_at_all(
    name: str, compute: torch.dtype, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 31: no MFU from a guessed peak."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert watching.peak(torch.device("cuda"), compute) == expected


def test_work_is_that_of_a_trained_token_of_the_run_and_the_peak_is_said(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    assert recipe.model is not None
    monkeypatch.setattr(watching, "matmul_seconds", lambda dtype, size, budget: 0.01 * (size / 256) ** 2)
    work = watching.work_of(recipe, recipe.model, torch.device("cpu"), torch.float32, said.append)
    assert work.flops_per_token == flops(recipe.model, 64).training
    assert work.peak == 2 * 256**3 / 0.01
    monkeypatch.setattr(watching, "matmul_seconds", lambda dtype, size, budget: 0.005 * (size / 256) ** 2)
    work = watching.work_of(recipe, recipe.model, torch.device("cpu"), torch.float32, said.append)
    assert work.peak == 2 * watching.MEASURED_SIZE**3 / 0.08
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert watching.work_of(recipe, recipe.model, torch.device("cuda"), torch.bfloat16, said.append).peak is None
    work = watching.work_of(recipe, recipe.model, torch.device("cpu"), torch.float16, said.append)
    assert (work.peak, said[-1]) == (None, "MFU: n/a, the float16 peak of cpu here is not known"), (
        "runs reached 550 % of what was measured"
    )
    assert "measured" in said[0] and "n/a" in said[2]


def test_the_trackers_of_a_recipe_get_its_name_and_settings(recipe: Recipe, tmp_path: Any) -> None:
    trackers = watching.trackers_of(recipe, tmp_path, print)
    assert list(trackers.others) == ["tensorboard"] and trackers.path == tmp_path / "metrics.jsonl"


def test_a_type_without_units_is_not_measured_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large bf16 product takes 2.7 s on cores without bf16 units, and each start of a run made four of them."""
    asked: list[int] = []

    def slow(dtype: torch.dtype, size: int, budget: float) -> float:
        asked.append(size)
        return 2.7 * (size / 1024) ** 3

    monkeypatch.setattr(watching, "matmul_seconds", slow)
    found = watching.peak(torch.device("cpu"), torch.bfloat16)
    assert asked == [256] and found == pytest.approx(2 * 1024**3 / 2.7)
