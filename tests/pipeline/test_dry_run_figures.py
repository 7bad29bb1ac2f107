"""``--dry-run``: figures that hold, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config.load import load_recipe, shipped_recipes
from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.pipeline.dry_run import dry_run
from sproutlm.pipeline.split import setting_of
from sproutlm.plan import training_memory

SOURCE = Path(__file__).resolve().parents[2] / "src"


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def plan(*overrides: str, recipe: str = "recipe.yaml") -> dict[str, Any]:
    return dry_run(load_recipe(recipe, overrides))["stages"][0]


def test_figures_are_shown_and_nothing_is_written(project: Path, sprout: Callable) -> None:
    before = tree(project)
    ran = sprout("train", "recipe.yaml", "run=run", "--dry-run")
    assert ran.code == 0, ran.err
    for words in (
        "parameters",
        "tokens per step: 128",
        "steps: 4",
        "memory (estimate)",
        "time (estimate)",
        "nothing was written",
    ):
        assert words in ran.out
    assert tree(project) == before


def test_the_figures_equal_those_of_the_run_itself(finished: Path, train: Callable) -> None:
    """Parameters, steps and compute type are no estimates; nor may a dry run disturb a run that is there."""
    before = tree(finished / "run")
    assert train("--dry-run", "--json", "plan.json").code == 0
    assert tree(finished / "run") == before
    assert train("--json", "done.json").code == 0
    planned = json.loads((finished / "plan.json").read_text())["stages"][0]
    done = json.loads((finished / "done.json").read_text())
    assert {k: planned[k] for k in ("parameters", "steps", "compute")} == {
        k: done[k] for k in ("parameters", "steps", "compute")
    }
    assert planned["tokens_per_step"] == 128 and planned["seconds_estimated"] is not None
    assert planned["memory_bytes"] == sum(planned["memory_by_part"].values())


@pytest.mark.parametrize(
    ("length", "steps", "estimated"),
    [("train.steps=9", 9, False), ("train.tokens=1000", 7, False), ("train.epochs=3", None, True)],
)
def test_steps_follow_from_steps_tokens_or_epochs(
    project: Path, length: str, steps: int | None, estimated: bool
) -> None:
    overrides = [length] if length.startswith("train.steps") else ["train.steps=null", length]
    figures = plan(*overrides)
    assert figures["steps_are_estimated"] is estimated
    if steps is not None:
        assert figures["steps"] == steps
    else:  # from the size of the file: about 4 kB of text at 3.4 bytes a token, 4 rows of 32 tokens a step
        rows = (project / "text.jsonl").stat().st_size / 3.4 / 32
        assert figures["steps"] == pytest.approx(3 * rows / 4, rel=0.1)


def test_memory_by_part_follows_the_shape(project: Path) -> None:
    """Masters, gradients and optimizer state are counted to the byte; bf16 adds the rounded copies."""
    recipe = load_recipe("recipe.yaml").recipe
    config = recipe.model.model_copy(update={"vocab_size": 300})
    model = Transformer(config)
    n = sum(p.numel() for p in model.parameters())
    blocks = [p for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    matrices, lines = sum(p.numel() for p in blocks), sum(max(p.shape) for p in blocks)
    full, low = (training_memory(config, setting_of(recipe, compute)) for compute in ("float32", "bf16"))
    assert (full["parameters"], full["gradients"]) == (4 * n, 4 * n)
    assert (low["parameters"], low["gradients"]) == (6 * n, 4 * n)  # those in bf16 take the activations' room
    assert full["optimizer"] == 4 * (matrices + lines) + 8 * (n - matrices)
    assert low["activations"] < full["activations"] and full["logits"] > 0


@pytest.mark.slow
def test_estimated_memory_is_within_half_of_the_measured_peak(tmp_path: Path) -> None:
    """The tiny recipe in a process of its own, peak resident memory as the kernel counts it."""
    estimate = plan(recipe=str(shipped_recipes() / "tiny.yaml"))["memory_bytes"]
    code = (
        "import resource, sys; from sproutlm.cli import main;"
        f"code = main(['train', 'tiny', 'run={tmp_path / 'run'}', 'train.steps=3', 'train.device=cpu']);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    peak = int(ran.stderr.splitlines()[-1])
    assert 0.5 < estimate / peak < 1.5, f"estimated {estimate / 2**20:.0f} MB, measured {peak / 2**20:.0f} MB"


def test_every_training_stage_of_a_pipeline_is_planned(tmp_path: Path, sprout: Callable, monkeypatch: Any) -> None:
    """Stages that read what earlier ones will make: the world, a tokenizer, the shape of a model to start from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house.yaml").write_text(
        """
name: house
stages:
  - {do: synth, name: world, size: tiny}
  - do: train
    name: base
    recipe:
      data: {train: "stage:world/pretrain.jsonl", seq_len: 64}
      tokenizer: {vocab_size: 400}
      model: {dim: 16, n_heads: 2, n_layers: 1, max_seq_len: 64}
      train: {steps: 10, batch_tokens: 128}
  - do: train
    name: chat
    recipe:
      stage: sft
      data: {train: "stage:world/sft.jsonl", seq_len: 64}
      init_from: stage:base
      train: {epochs: 2, batch_tokens: 128}
"""
    )
    before = tree(tmp_path)
    ran = sprout("run", "house.yaml", "--dry-run")
    assert ran.code == 0, ran.err
    assert tree(tmp_path) == before
    figures = dry_run(load_recipe("house.yaml"))
    world, base, chat = figures["stages"]
    assert world == {"name": "world", "do": "synth"}
    assert base["steps"] == 10 and base["model"]["vocab_size"] == 400
    assert chat["parameters"] == base["parameters"] and chat["steps"] > 0
    assert figures["seconds_estimated"] == pytest.approx(base["seconds_estimated"] + chat["seconds_estimated"], abs=0.1)


def test_a_stage_takes_the_vocabulary_of_the_tokenizer_that_another_stage_will_make(tmp_path: Path) -> None:
    (tmp_path / "house.yaml").write_text(
        """
name: house
stages:
  - {do: synth, name: world, size: tiny}
  - do: tokenizer
    name: words
    tokenizer: {vocab_size: 512, train_on: "stage:world/pretrain.jsonl"}
  - do: train
    name: base
    recipe: &base
      data: {train: "stage:world/pretrain.jsonl", seq_len: 64}
      tokenizer: {path: "stage:words"}
      model: {dim: 16, n_heads: 2, n_layers: 1, max_seq_len: 64}
      train: {steps: 10, batch_tokens: 128}
  - do: train
    name: again
    recipe: {<<: *base, tokenizer: "stage:base"}
"""
    )
    _, _, base, again = dry_run(load_recipe(str(tmp_path / "house.yaml")))["stages"]
    assert base["model"]["vocab_size"] == again["model"]["vocab_size"] == 512
    model = Transformer(ModelConfig(**base["model"]))
    assert base["parameters"] == again["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_missing_file_is_a_sentence_before_anything_is_measured(project: Path, sprout: Callable) -> None:
    ran = sprout("train", "recipe.yaml", "run=run", "data.train=nowhere.jsonl", "--dry-run")
    assert ran.code == 1 and "nowhere.jsonl: no such file or folder" in ran.err


def test_the_shape_comes_from_the_model_to_start_from(finished: Path, sprout: Callable) -> None:
    ran = sprout("train", "recipe.yaml", "run=next", "init_from=run", "model=null", "--dry-run", "--json", "plan.json")
    assert ran.code == 0, ran.err
    stage = json.loads((finished / "plan.json").read_text())["stages"][0]
    assert stage["model"]["dim"] == 16 and stage["model"]["vocab_size"] == 300
