"""``--apply``: the settings land in the file, and nothing else of it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sproutlm.cli import main
from sproutlm.config.load import load_recipe
from sproutlm.errors import SproutError
from sproutlm.pipeline.apply import edited

TEXT = """\
# my first run
name: own            # of the folder
data: {train: rows.txt, seq_len: 512}
model: {preset: gpt2}
optimizer:
  # as in the paper
  name: adamw        # the classic
  lr: 0.001
train:
  steps: 2
  batch_tokens: 32768   # 64 rows
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("spring and rain\n" * 20)
    (tmp_path / "own.yaml").write_text(TEXT)
    return tmp_path / "own.yaml"


def test_comments_and_order_are_kept_and_the_difference_is_shown(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.chmod(0o640)
    assert main(["plan", "own.yaml", "--device", "4GB", "--apply"]) == 0
    shown, text = capsys.readouterr().out, recipe.read_text()
    added = [line for line in text.splitlines() if line not in TEXT.splitlines()]
    assert added and all(f"+{line}" in shown for line in added)
    assert [line for line in text.splitlines() if line in TEXT.splitlines()] == TEXT.splitlines()
    assert load_recipe("own.yaml").recipe.train.micro_batch >= 1
    assert recipe.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in recipe.parent.iterdir()} == {"own.yaml", "rows.txt"}
    # What was written makes it fit, so the same command finds nothing more to do.
    assert main(["plan", "own.yaml", "--device", "4GB", "--apply"]) == 0
    assert "it fits as it is; nothing was written" in capsys.readouterr().out and recipe.read_text() == text


MEDIUM = "{vocab_size: 32000, dim: 1024, n_layers: 30, n_heads: 16, n_kv_heads: 8, max_seq_len: 512}"  # 380 M
SMALL = "{vocab_size: 6400, dim: 448, n_layers: 7, n_heads: 7, max_seq_len: 512}"  # 20 M
LONG = "{vocab_size: 6400, dim: 512, n_layers: 8, n_heads: 8, max_seq_len: 8192}"


@pytest.mark.parametrize(
    ("model", "size", "keys"),
    [
        (SMALL, "4GB", {"train.micro_batch"}),
        (MEDIUM, "8GB", {"train.micro_batch", "optimizer.state_dtype"}),
        (LONG, "2.5GB", {"train.micro_batch", "train.checkpointing", "train.loss_chunk"}),
        (LONG, "2GB", {"train.micro_batch", "train.checkpointing"}),
    ],
)
def test_what_is_written_fits(model: str, size: str, keys: set[str], recipe: Path, tmp_path: Path) -> None:
    """The settings that the plan names are a recipe's, and the recipe with them fits as it is."""
    text = TEXT.replace("seq_len: 512", "seq_len: 8192") if model == LONG else TEXT
    recipe.write_text(text.replace("{preset: gpt2}", model))
    before = load_recipe(recipe).recipe.model_dump()
    assert main(["plan", "own.yaml", "--device", size, "--apply", "--json", "first.json"]) == 0
    after = load_recipe(recipe).recipe.model_dump()
    changed = {f"{s}.{k}" for s in ("train", "optimizer", "data") for k in after[s] if after[s][k] != before[s][k]}
    assert changed == keys
    assert main(["plan", "own.yaml", "--device", size, "--json", "again.json"]) == 0
    (place,) = json.loads((tmp_path / "again.json").read_text())["plans"][0]["places"]
    assert place["training"]["settings"] == {} and place["training"]["bytes"] <= place["room_bytes"]


def test_what_cannot_fit_anywhere_is_said_and_nothing_is_written(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "own.yaml", "--device", "1GB", "--apply"]) == 3
    assert "no setting makes it fit 1 GB; nothing was written" in capsys.readouterr().err
    assert recipe.read_text() == TEXT


def test_muon_brings_its_own_rate(recipe: Path) -> None:
    """AdamW's 0.001 would leave Muon's matrices where they are."""
    from sproutlm.pipeline.apply import with_companions

    found = with_companions(load_recipe("own.yaml").recipe, {"optimizer.name": "muon"})
    assert found == {"optimizer.name": "muon", "optimizer.lr": 0.01}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("train:\n  steps: 2 # two\n", "train:\n  micro_batch: 4\n  steps: 2 # two\n"),
        ("train: {steps: 2}\n", "train: {micro_batch: 4, steps: 2}\n"),
        ("train: {micro_batch: 16, steps: 2} # x\n", "train: {micro_batch: 4, steps: 2} # x\n"),
        ("train: {}\n", "train: {micro_batch: 4}\n"),
        ("name: a", "name: a\ntrain:\n  micro_batch: 4\n"),
        ("{name: a}", "{train: {micro_batch: 4}, name: a}"),
    ],
)
def test_one_key_in_every_kind_of_section(before: str, after: str) -> None:
    assert edited(before, {"train.micro_batch": 4}, "r.yaml") == after


def test_a_stage_of_a_pipeline() -> None:
    text = "stages:\n  - do: synth\n    name: w\n  - do: train # it\n    name: p\n    recipe:\n      train:\n        steps: 2\n"
    found = edited(text, {"train.micro_batch": 4, "optimizer.name": "muon"}, "r.yaml", ("stages", 1, "recipe"))
    assert found == text.replace("        steps", "        micro_batch: 4\n        steps").replace(
        "      train:", "      optimizer:\n        name: muon\n      train:"
    )


def test_a_section_that_is_none_is_a_sentence() -> None:
    with pytest.raises(SproutError, match="optimizer is no section with keys"):
        edited("optimizer: muon\n", {"optimizer.name": "adamw"}, "r.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own.yaml", "--apply"], "give --device too"),
        (["gpt2", "--device", "8GB", "--apply"], "gpt2 is no file of yours"),
        (["own.yaml", "train.steps=3", "--device", "8GB", "--apply"], "put the settings into the file first"),
        (["own.yaml", "--device", "9000"], "no such device; expected cpu, h100"),
        (["own.yaml", "--price", "2"], "--price is of an hour of one device"),
        (["own.yaml", "--nodes", "2", "--device", "3060"], "no rates are known for several of it"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    arguments: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err and recipe.read_text() == TEXT


def test_nodes_and_price(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "own.yaml", "--nodes", "2", "--gpus", "8", "--price", "2", "--json", "n.json"]) == 0
    shown = capsys.readouterr().out
    assert "Held out:" in shown and "where the figures come from" in shown and "at the price given" in shown
    assert main(["plan", "own.yaml", "--device", "h100", "--price", "3.5"]) == 0
    shown = capsys.readouterr().out
    assert "cost (estimate)" in shown and "at 3.5 an hour" in shown
    assert main(["plan", "own.yaml", "--device", "8GB"]) == 0
    assert "cost" not in capsys.readouterr().out
