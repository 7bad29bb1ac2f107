"""``sprout verify resume``: every stage goes on exactly where it was, and each promise notices the fault it is for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sproutlm.cli import main
from sproutlm.verify import resume
from sproutlm.verify.processes import launcher
from sproutlm.verify.resume import PROMISES, RECIPES, STAGES, WAYS, Runs, verify_resume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork")

SETTING = ("muon", "float32")
KILL, SIGTERM = (replace(way, settings=(SETTING,)) for way in WAYS)

# Appended to the objective's module, so that the process that is interrupted has the fault. None changes a run from its
# beginning to its end: only going on shows them.
COUNTING_LOADER = """
from sproutlm.data.loader import Loader
right, calls = Loader.batch, []
def batch(self, step, *ranks, **named):
    calls.append(step)
    return right(self, len(calls) - 1, *ranks, **named)
Loader.batch = batch
"""
FORGOTTEN_MOMENTUM = """
from sproutlm.train.optim import Optimizers
right = Optimizers.load_tensors
def load_tensors(self, tensors):
    right(self, dict((n, t * 0 if n.endswith("/momentum") else t) for n, t in tensors.items()))
Optimizers.load_tensors = load_tensors
"""
DROPOUT_BY_CALLS = """
from sproutlm.train import trainer
right, drawn = trainer.stream_seed, []
def stream_seed(seed, step, micro, rank):
    drawn.append(micro)
    return right(seed, (len(drawn) - 1) // 3, micro, rank)
trainer.stream_seed = stream_seed
"""
NOT_A_NUMBER_KEPT = """
from sproutlm.train.trainer import TrainState
right = TrainState.restored
def restored(stored):
    return right(dict(stored, tokens=0))
TrainState.restored = restored
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with launcher() as launch:
        made = Runs(tmp_path_factory.mktemp("runs"), launch)
        made.straight("pretrain", SETTING)
        yield made


def failed(runs: Runs) -> set[str]:
    pair = runs.straight("pretrain", SETTING), runs.interrupted("pretrain", SETTING, KILL)
    return {promise for promise, measure in PROMISES.items() if not measure(*pair).ok}


def test_every_stage_of_the_schema_has_a_recipe() -> None:
    """A new stage is not forgotten: it would fail here, and in the command."""
    assert set(RECIPES) == set(STAGES) and {"pretrain", "sft"} <= set(STAGES)


def test_a_stage_without_a_recipe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "STAGES", ("new",))
    report = verify_resume("new")
    assert report["failed"] == 1 and "no recipe for the stage new" in report["checks"][0]["note"]


def test_fine_tuning_goes_on_where_it_was_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = (("adamw", "bf16"),)
    monkeypatch.setattr(resume, "WAYS", (replace(KILL, settings=setting), replace(SIGTERM, settings=setting)))
    monkeypatch.setattr(resume, "ASYNC_WAYS", tuple(replace(way, settings=setting) for way in resume.ASYNC_WAYS))
    assert main(["verify", "resume", "--stage", "sft", "--json", str(tmp_path / "resume.json")]) == 0
    report = json.loads((tmp_path / "resume.json").read_text())
    assert len(report["checks"]) == len(resume.ways()) * len(PROMISES) == capsys.readouterr().out.count("  ok    ")
    assert {check["family"] for check in report["checks"]} == {"sft"}


@pytest.mark.slow
def test_every_promise_holds_in_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "resume"]) == 0
    assert capsys.readouterr().out.count("  ok    ") == len(STAGES) * len(resume.ways()) * len(PROMISES)


def test_an_unknown_stage_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "resume", "--stage", "nonsense"]) == 1
    error = capsys.readouterr().err
    assert "--stage nonsense: not known; known are pretrain, sft" in error and "Traceback" not in error


# --- faults -------------------------------------------------------------------------------------------------------------


def test_without_a_fault_nothing_differs(runs: Runs) -> None:
    assert failed(runs) == set()


def test_a_loader_that_counts_its_calls_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + COUNTING_LOADER)
    assert failed(runs) == set(PROMISES)


def test_a_momentum_that_is_forgotten_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are the right ones; all that is computed from them is not."""
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + FORGOTTEN_MOMENTUM)
    assert set(PROMISES) - failed(runs) == {"the same rows in every step"}


def test_dropout_that_goes_on_from_its_first_step_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + DROPOUT_BY_CALLS)
    assert set(PROMISES) - failed(runs) == {"the same rows in every step"}


def test_a_count_that_starts_again_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights do not depend on how many tokens were seen; what is plotted does."""
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + NOT_A_NUMBER_KEPT)
    assert failed(runs) == {"losses and figures of every step"}


def test_a_fault_ends_the_command_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resume, "WAYS", (KILL,))
    monkeypatch.setattr(resume, "ASYNC_WAYS", ())
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + FORGOTTEN_MOMENTUM)
    assert main(["verify", "resume", "--stage", "pretrain"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("  FAIL  ") == 3 and captured.out.count("  ok    ") == 1
    assert "3 checks failed" in captured.err


def test_a_process_that_ends_otherwise_than_it_should_is_a_failed_check(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "WITNESS", resume.WITNESS + "raise ValueError('broken')\n")
    monkeypatch.setattr(resume, "ways", lambda: (KILL,))
    checks = list(resume.promises_of(runs, "pretrain"))
    assert len(checks) == len(PROMISES) and not any(check["ok"] for check in checks)
    assert "ended with exit code 1 instead of -9" in checks[0]["note"] and "broken" in checks[0]["note"]


def test_values_are_compared_by_their_bits() -> None:
    def differing(ours: list[float], theirs: list[float]) -> float:
        return resume._same_values({"a": torch.tensor(ours)}, {"a": torch.tensor(theirs)}).error

    nan = float("nan")
    assert differing([0.0, nan, 1.0], [0.0, nan, 1.0]) == 0
    assert differing([0.0, nan, 1.0], [-0.0, nan, 1.0 + 2**-23]) == 2
    assert not resume._same_values({"a": torch.zeros(2)}, {"a": torch.zeros(3)}).ok
    assert not resume._same_values({"a": torch.zeros(2)}, {"b": torch.zeros(2)}).ok
