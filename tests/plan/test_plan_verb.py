"""``sprout plan``: presets and recipes, on the screen and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.cli import main
from sproutlm.config.load import load_recipe
from sproutlm.config.presets import PRESETS
from sproutlm.pipeline.dry_run import dry_run

RECIPE = """\
name: own
data: {train: rows.txt, seq_len: 64}
tokenizer: {vocab_size: 300}
model: {preset: llama-26m, n_layers: 2}
train: {steps: 2, batch_tokens: 256, compute: float32, device: cpu}
"""
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(RECIPE)
    (tmp_path / "rows.txt").write_text("spring and rain\n" * 200)

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        ended = main(["plan", *arguments, "--json", "plan.json"])
        shown = capsys.readouterr()
        assert ended == code, shown.err
        file = tmp_path / "plan.json"
        report = json.loads(file.read_text()) if file.exists() else {}
        file.unlink(missing_ok=True)
        assert {path.name for path in tmp_path.iterdir()} == {"own.yaml", "rows.txt"}  # nothing else was written
        return {"out": shown.out, "err": shown.err, **report}

    return run


def test_a_preset_is_planned(plan: Plan) -> None:
    ran = plan("qwen3-0.6b", "--context", "1024", "--batch", "2")
    (figures,) = ran["plans"]
    assert figures["parameters"]["total"] == figures["published"]["parameters"] == 596_049_920
    assert figures["training"]["setting"].items() >= {
        "rows": 2, "seq_len": 1024, "compute": "bf16", "optimizer": "muon", "document_mask": True
    }.items()  # fmt: skip
    assert figures["inference"]["bf16"]["kv_bytes_per_token"] == 2 * 28 * 8 * 128 * 2
    assert figures["inference"]["bf16"]["memory_by_part"]["kv_cache"] == 2 * 1024 * 114_688
    names = [place["name"] for place in figures["places"]]
    assert names[:8] == ["4 GB", "8 GB", "12 GB", "16 GB", "24 GB", "40 GB", "80 GB", "141 GB"]
    assert names[8].startswith("CPU ")
    for words in ("596,049,920 (published: exactly", "FLOPs per token, rows of 1,024", "estimates", "does not fit"):
        assert words in ran["out"]


def test_experts_are_shown_apart_from_what_a_token_meets(plan: Plan) -> None:
    ran = plan("mixtral-8x7b", "--context", "512")
    assert "active per token: 12,879,925,248" in ran["out"]
    assert not [p for p in ran["plans"][0]["places"] if p["training"]["settings"] is not None]  # 650 GB


def test_settings_are_those_of_a_recipe(plan: Plan) -> None:
    (plain,) = plan("gpt2")["plans"]
    (changed,) = plan("gpt2", "model.n_layers=6", "optimizer.name=adamw", "train.micro_batch=4")["plans"]
    assert changed["parameters"]["total"] < plain["parameters"]["total"] == 124_439_808
    assert changed["training"]["setting"]["optimizer"] == "adamw" and changed["training"]["setting"]["rows"] == 4
    assert "published" in plain and "published" not in changed  # a changed shape is not what was published


def test_a_recipe_is_planned_with_the_figures_of_its_dry_run(plan: Plan) -> None:
    """One memory model: the plan and --dry-run cannot differ. The vocabulary is the tokenizer's."""
    (figures,) = plan("own.yaml")["plans"]
    dry = dry_run(load_recipe("own.yaml"))["stages"][0]
    assert figures["training"]["memory_by_part"] == dry["memory_by_part"]
    assert figures["parameters"]["total"] == dry["parameters"]
    assert figures["model"]["vocab_size"] == 300 and figures["model"]["dim"] == 512
    assert figures["training"]["setting"].items() >= {
        "rows": 4, "seq_len": 64, "compute": "float32", "optimizer": "muon", "document_mask": True
    }.items()  # fmt: skip
    assert "published" not in figures  # two layers of it are not what was published


def test_every_training_stage_of_a_pipeline_is_planned(plan: Plan) -> None:
    assert [one["name"] for one in plan("quickstart")["plans"]] == ["pretrain", "sft", "control"]


def test_the_list_names_every_preset(plan: Plan) -> None:
    ran = plan("--list")
    assert [row["name"] for row in ran["presets"]] == list(PRESETS)
    assert all(f"\n{name} " in "\n" + ran["out"] for name in PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen3-06b"], "qwen3-06b: neither a preset nor a recipe; did you mean 'qwen3-0.6b'?"),
        (["quikstart"], "quikstart: neither a preset nor a recipe; did you mean 'quickstart'?"),
        (["gpt2", "--context", "2048"], "2048 exceeds model.max_seq_len=1024; lower one or raise the other"),
        (["own.yaml", "--context", "99999"], "--context 99999: own holds 32,768 tokens; lower it"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["gpt2", "model.layers=3"], "model.layers: unknown key (got 3); did you mean 'n_layers'?"),
        (["gpt2", "--batch", "0"], "Invalid value for '--batch'"),
        (["clean-en", "clean.sources=rows.txt"], "describes the cleaning of data, and has no model to plan"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(arguments: list[str], message: str, plan: Plan, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPROUT_TEXT", "rows.txt")
    ran = plan(*arguments, code=1)
    assert message in ran["err"] and "Traceback" not in ran["err"] and not ran["out"]


def test_a_file_comes_before_a_preset_of_the_same_name(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").rename(tmp_path / "gpt2")
    try:
        assert main(["plan", "gpt2", "--json", "p"]) == 0
        assert json.loads((tmp_path / "p").read_text())["plans"][0]["name"] == "own"
    finally:
        (tmp_path / "gpt2").rename(tmp_path / "own.yaml")
