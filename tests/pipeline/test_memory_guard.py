"""A run that cannot end is not begun, and a full card is explained; the probe measures what a step takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.config.load import load_recipe
from sproutlm.errors import OutOfMemory
from sproutlm.pipeline.dry_run import config_of
from sproutlm.pipeline.memory_guard import full_card_explained, refuse_too_large
from sproutlm.pipeline.train import train_recipe

CPU = torch.device("cpu")
LARGE = ["train.batch_tokens=65536", "data.seq_len=128", "model.max_seq_len=128", "model.dim=128", "model.n_heads=4"]


def test_a_run_over_the_limit_is_refused_before_anything_is_written(
    project: Path, sprout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would kill it without a word; here it is told what would help, and exit code 3."""
    monkeypatch.setenv("SPROUT_MEMORY_LIMIT", "600MB")
    ran = sprout("train", "recipe.yaml", "run=run", *LARGE)
    assert ran.code == 3 and "Traceback" not in ran.err
    assert (
        "SPROUT_MEMORY_LIMIT=600MB" in ran.err and "1. train.micro_batch=" in ran.err and "the same training" in ran.err
    )
    assert "train.force_memory=true" in ran.err
    assert not list((project / "run").glob("*/*"))


def test_what_the_refusal_names_is_accepted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPROUT_MEMORY_LIMIT", "600MB")
    recipe = load_recipe("recipe.yaml", LARGE).recipe
    with pytest.raises(OutOfMemory) as refused:
        refuse_too_large(recipe, CPU)
    line = next(line for line in str(refused.value).splitlines() if line.startswith("  1. "))
    settings = line.removeprefix("  1. ").split(": ")[0].split()
    refuse_too_large(load_recipe("recipe.yaml", [*LARGE, *settings]).recipe, CPU)
    refuse_too_large(load_recipe("recipe.yaml", [*LARGE, "train.force_memory=true"]).recipe, CPU)
    refuse_too_large(recipe, torch.device("cuda"))  # a card asks for itself


def test_no_setting_helps_a_model_that_is_too_large(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPROUT_MEMORY_LIMIT", "100MB")
    with pytest.raises(OutOfMemory, match="no setting makes it fit .* choose a smaller model"):
        refuse_too_large(load_recipe("recipe.yaml").recipe, CPU)


@pytest.mark.parametrize("fault", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_a_full_card_is_explained_with_ranked_cures(
    project: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """From a whole run whose objective fails: its checkpoints stay, the message has numbers."""

    def full(*arguments: Any) -> Any:
        raise fault

    monkeypatch.setattr("sproutlm.pipeline.train.objective_of", lambda recipe: full)
    recipe = load_recipe("recipe.yaml", ["train.streams=1"]).recipe
    with pytest.raises(OutOfMemory) as raised:
        train_recipe(recipe, project / "run", say=lambda line: None)
    assert "out of memory on cpu" in str(raised.value) and "Tried to allocate 2.00 GiB." in str(raised.value)
    assert "  1. " in str(raised.value) or "no setting makes it fit" in str(raised.value)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("fault", [RuntimeError("shapes differ"), NotImplementedError("no such kernel")])
def test_other_faults_pass(project: Path, fault: Exception) -> None:
    recipe = load_recipe("recipe.yaml").recipe
    with pytest.raises(type(fault), match=str(fault)), full_card_explained(recipe, config_of(recipe), CPU):
        raise fault


def test_the_cpus_own_allocator_is_understood(project: Path) -> None:
    recipe = load_recipe("recipe.yaml").recipe
    fault = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"
    )
    with pytest.raises(OutOfMemory, match="can't allocate memory"), full_card_explained(recipe, config_of(recipe), CPU):
        raise fault


def test_the_probe_makes_a_step_and_compares(project: Path, sprout: Callable) -> None:
    ran = sprout("plan", "recipe.yaml", "--probe", "--json", "plan.json")
    assert ran.code == 0, ran.err
    (probe,) = json.loads((project / "plan.json").read_text())["probes"]
    assert "one step of full rows on cpu" in ran.out and "measured" in ran.out
    assert probe["peak_bytes"] > 100 * 2**20 and probe["seconds"] > 0
    assert 0.6 < probe["predicted_bytes"] / probe["peak_bytes"] < 1.6  # of a tiny model: the program itself


def test_a_probe_that_is_killed_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sproutlm.pipeline.probe import probe
    from sproutlm.pipeline.split import setting_of

    killed = subprocess.CompletedProcess([sys.executable], -9, "", "")
    monkeypatch.setattr("sproutlm.pipeline.probe.subprocess.run", lambda *a, **k: killed)
    recipe = load_recipe("recipe.yaml").recipe
    with pytest.raises(OutOfMemory, match="ended by the kernel"):
        probe(recipe, config_of(recipe), setting_of(recipe, "float32"))
