"""What a run starts from: random weights, said; another run's weights, of the same shape; and how much it changed them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sproutlm
from sproutlm.config import Recipe
from sproutlm.config.load import load_recipe
from sproutlm.errors import RecipeError
from sproutlm.pipeline.dry_run import dry_run
from sproutlm.pipeline.train import import_attribute, total_steps, train

CHATS = [
    {"messages": [{"role": "user", "content": f"{a} + {b}?"}, {"role": "assistant", "content": str(a + b)}]}
    for a in range(6)
    for b in range(5)
]

PRETRAIN = """
name: plain
data: {train: text.txt, seq_len: 32, workers: 1}
tokenizer: {vocab_size: 300}
model: {dim: 16, n_layers: 1, n_heads: 2, max_seq_len: 32}
train: {steps: 1, batch_tokens: 128, compute: float32, device: cpu}
"""

SFT = """
name: answers
stage: sft
data: {train: chats.jsonl, seq_len: 32, workers: 1}
init_from: run
schedule: {warmup: 1}
train: {steps: 3, batch_tokens: 128, compute: float32, device: cpu, log_every: 1}
sample: {prompts: []}
"""


@pytest.fixture
def sft(finished: Path, sprout: Callable) -> Callable[..., Any]:
    """``sprout train sft.yaml run=sft ARGUMENTS`` from the finished run in ``run``."""
    (finished / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    (finished / "sft.yaml").write_text(SFT)
    return lambda *arguments: sprout("train", "sft.yaml", "run=sft", *arguments)


def test_fine_tuning_starts_from_the_weights_and_reports_how_many_it_changed(finished: Path, sft: Callable) -> None:
    """Pitfall 29: a share near 0 would say that the rate is too small for anything to be learnt."""
    ran = sft("--json", "figures.json")
    assert ran.code == 0, ran.err
    assert "starting from" in ran.out and "RANDOM" not in ran.out
    share = json.loads((finished / "figures.json").read_text())["changed_share"]
    assert 0.5 < share <= 1 and f"{share:.1%} of the weights changed" in ran.out


def test_a_rate_too_small_to_matter_shows_as_a_share_near_zero(finished: Path, sft: Callable) -> None:
    """Pitfall 29: the float32 masters move, by less than bf16 can hold."""
    rates = ["optimizer.lr=1e-9", "optimizer.embedding_lr=1e-9", "optimizer.scalar_lr=1e-9"]
    assert sft("--json", "figures.json", *rates).code == 0
    assert json.loads((finished / "figures.json").read_text())["changed_share"] < 0.01


def test_fine_tuning_from_random_weights_on_purpose_is_said_in_the_run(finished: Path, sft: Callable) -> None:
    """Pitfall 39."""
    shape = "model={dim: 16, n_layers: 1, n_heads: 2, ffn_dim: 32, max_seq_len: 64}"
    ran = sft("init_from=random", shape, "tokenizer.path=run/tokenizer", "--json", "figures.json")
    assert ran.code == 0, ran.err
    assert "warning" in ran.out and "RANDOM weights" in ran.out
    assert json.loads((finished / "figures.json").read_text())["changed_share"] is None


def test_a_start_of_another_shape_is_refused_with_every_field_that_differs(finished: Path, sft: Callable) -> None:
    ran = sft("model={dim: 24, n_layers: 3, n_heads: 2, ffn_dim: 32, max_seq_len: 64}")
    assert ran.code == 1
    for words in ("another shape", "dim: 16 there, 24 in the recipe", "n_layers: 1 there, 3 in the recipe"):
        assert words in ran.err
    assert "ffn_dim" not in ran.err and "remove `model:` from the recipe" in ran.err
    assert not (finished / "sft" / "checkpoints").exists()


def test_a_vocabulary_of_another_size_is_refused(finished: Path, sft: Callable, sprout: Callable) -> None:
    """Pitfall 9: before the first step, by name."""
    ran = sft("model={vocab_size: 512, dim: 16, n_layers: 1, n_heads: 2, ffn_dim: 32, max_seq_len: 64}")
    assert ran.code == 1 and "vocab_size: 300 there, 512 in the recipe" in ran.err
    ran = sprout("train", "recipe.yaml", "run=other", "model.vocab_size=64")
    assert ran.code == 1 and "less than the tokenizer's 300 ids" in ran.err


def test_rows_longer_than_the_start_can_hold_are_refused(sft: Callable) -> None:
    ran = sft("data.seq_len=128")
    assert ran.code == 1 and "it holds 64 positions, data.seq_len is 128" in ran.err


def test_another_start_under_the_same_name_is_refused_when_the_run_goes_on(
    finished: Path, sft: Callable, train: Callable
) -> None:
    """The path is the same, the weights behind it are not: what the checkpoints grew from has gone."""
    assert sft().code == 0
    assert train("--change", "train.steps=5").code == 0
    ran = sft("--change", "train.steps=5")
    assert ran.code == 1 and "changed since: the model that init_from names (other weights)" in ran.err


def test_the_final_model_is_that_of_the_last_checkpoint(finished: Path) -> None:
    model, tokenizer = sproutlm.load(finished / "run" / "model")
    stored, _ = sproutlm.load(finished / "run" / "checkpoints" / "step-00000004")
    assert tokenizer is not None and tokenizer.vocab_size == 300
    for name, parameter in stored.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter)


def test_the_run_folder_and_each_checkpoint_hold_the_resolved_recipe(finished: Path, sprout: Callable) -> None:
    """Nothing is left open in it, and it alone is enough to train again."""
    stored = (finished / "run" / "recipe.yaml").read_text()
    assert stored == (finished / "run" / "checkpoints" / "step-00000004" / "recipe.yaml").read_text()
    assert "micro_batch: 4" in stored and "vocab_size: 300" in stored and "steps: 4" in stored
    ran = sprout("train", "run/recipe.yaml", "run=again")
    assert ran.code == 0, ran.err
    for step in (2, 4):
        name = f"checkpoints/step-{step:08d}/model.safetensors"
        assert (finished / "run" / name).read_bytes() == (finished / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("length", "steps"), [({"steps": 7}, 7), ({"tokens": 1000}, 7), ({"tokens": 5}, 1), ({"epochs": 2}, 25)]
)
def test_the_length_of_a_run_in_steps_tokens_or_epochs(length: dict[str, int], steps: int) -> None:
    """128 tokens a step, 50 rows of 32 tokens in an epoch."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"train": [{"path": "x"}], "seq_len": 32},
            "model": {"dim": 8, "n_heads": 2},
            "train": {"batch_tokens": 128, **length},
        }
    )
    assert total_steps(recipe, 50) == steps


def test_an_objective_of_ones_own_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(RecipeError, match="objective: .no.such:thing. cannot be imported"):
        import_attribute("no.such:thing", "objective")
    assert import_attribute("math:pi", "objective") > 3


def test_an_objective_is_found_in_the_current_folder_and_checked_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed command does not have the current folder on its path."""
    (tmp_path / "recipe.yaml").write_text(PRETRAIN)
    (tmp_path / "text.txt").write_text("a few words to learn\n" * 9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "own_loss_here.py").write_text("def halved(model, batch): ...\nnumber = 3\n")

    def begin(objective: str) -> None:
        train(load_recipe("recipe.yaml", [f"objective={objective}"]), say=lambda sentence: None)

    assert import_attribute("own_loss_here:halved", "objective").__name__ == "halved"
    for wrong in ("own_loss_here:number", "own_loss_here:none", "no_file_here:halved"):
        with pytest.raises(RecipeError, match="objective: .*expected"):
            begin(wrong)
        with pytest.raises(RecipeError, match="objective: .*expected"):
            dry_run(load_recipe("recipe.yaml", [f"objective={wrong}"]))
    assert not (tmp_path / "runs").exists()
