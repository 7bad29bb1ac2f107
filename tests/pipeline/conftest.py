"""A recipe that trains in a third of a second, and a finished run of it to copy."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
name: small
seed: 3
data:
  train: text.jsonl
  validation: {rows: 4}
  seq_len: 32
  workers: 1
tokenizer: {vocab_size: 300}
model: {dim: 16, n_layers: 1, n_heads: 2, ffn_dim: 32, max_seq_len: 64}
schedule: {warmup: 1}
train:
  steps: 4
  batch_tokens: 128
  compute: float32
  device: cpu
  log_every: 1
  save_every: 2
sample: {prompts: []}
"""


def write_project(folder: Path) -> Path:
    """``recipe.yaml`` and its text in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = "the tree river stone bird house sings grows falls runs near under and a 树 河 石 鸟 在 旁边 。".split()
    rows = [{"text": " ".join(rng.choice(words) for _ in range(rng.randint(4, 40)))} for _ in range(40)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "text.jsonl").write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sproutlm.config.load import load_recipe
    from sproutlm.pipeline.train import train

    folder = write_project(tmp_path_factory.mktemp("finished"))
    train(load_recipe(folder / "recipe.yaml", [f"run={folder / 'run'}"]), say=lambda sentence: None)
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project with a finished run of four steps in ``run``, checkpoints at steps 2 and 4."""
    folder = tmp_path / "project"
    shutil.copytree(_finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project that was not run yet."""
    folder = write_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def train(sprout: Callable) -> Callable:
    """``sprout train recipe.yaml run=run ARGUMENTS`` in the current folder."""
    return lambda *arguments: sprout("train", "recipe.yaml", "run=run", *arguments)
