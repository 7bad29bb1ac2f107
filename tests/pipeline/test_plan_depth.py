"""``sprout plan --depth``: one number's whole set, for one depth and for several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sproutlm.cli import main
from sproutlm.config.depth import dial
from sproutlm.config.model import ModelConfig
from sproutlm.plan import flops
from sproutlm.plan.places import place_of


def rows(printed: str) -> dict[str, list[str]]:
    """A column's cells by the row's name; cells stand at least two blanks apart."""
    lines = [line for line in printed.splitlines() if "  " in line.strip()]
    cells = [[cell.strip() for cell in line.strip().split("  ") if cell.strip()] for line in lines]
    return {name: values for name, *values in cells}


def test_several_depths_are_a_table_and_the_figures_are_the_dials(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", "--depth", "2,12", "--device", "h100", "--price", "2", "--json", str(out)]) == 0
    table = rows(capsys.readouterr().out)
    assert table["depth"] == ["2", "12"] and table["batch, tokens"] == ["4,096", "524,288"]
    assert table["rate: embedding"] == ["0.006", "0.003"] and table["heads"] == ["2 of 64", "12 of 64"]
    two, twelve = json.loads(out.read_text())["depths"]
    one = dial(12, 6400)
    assert (twelve["tokens"], twelve["steps"], twelve["parameters"]) == (one.tokens, one.steps, one.parameters)
    work = flops(ModelConfig(depth=12, vocab_size=6400), 256).training * one.tokens
    assert twelve["training_flops"] == pytest.approx(work)
    assert twelve["settings"] and twelve["memory_bytes"] <= place_of("h100").room, "with settings that make it fit"
    assert two["settings"] == {} and two["seconds"] < twelve["seconds"]
    assert twelve["device"]["cost"] == pytest.approx(twelve["seconds"] / 3600 * 2)


def test_settings_change_the_set_and_what_does_not_fit_is_said(capsys: Any) -> None:
    settings = ["tokenizer.vocab_size=1000", "optimizer.lr=0.01", "train.steps=5"]
    assert main(["plan", *settings, "--depth", "64", "--device", "4GB"]) == 0
    printed = capsys.readouterr().out
    table = rows(printed)
    assert table["memory (estimate)"] == ["does not fit"] and table["time (estimate)"] == ["n/a"]
    assert table["rate: matrices"] == ["0.01"] and table["steps"] == ["5"] and "vocabulary 1,000" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "0"], "from 1 to 64"),
        (["--depth", "-1"], "from 1 to 64"),
        (["--depth", "1000"], "from 1 to 64"),
        (["--depth", "2,x"], "from 1 to 64"),
        (["--depth", ""], "from 1 to 64"),
        (["gpt2", "--depth", "4"], "leave out gpt2"),
        (["--depth", "4", "--apply"], "--depth goes with"),
        (["--depth", "4", "--price", "2"], "give --device too"),
        (["--depth", "4", "--device", "9000"], "no such device"),
    ],
)
def test_a_wrong_depth_is_one_sentence(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(["plan", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_dry_run_shows_what_depth_chose(tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: d\ndata: {train: "synth:tiny/pretrain", seq_len: 64}\nmodel: {depth: 1}\n')
    assert main(["train", str(recipe), "--dry-run", "tokenizer.vocab_size=500"]) == 0
    said = capsys.readouterr()
    assert "model.depth=1 chose model.dim=64" in said.err and "train.batch_tokens=2048" in said.err
    assert "tokens per step: 2,048" in said.out
