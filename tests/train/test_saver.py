"""Checkpoints written beside the loop: the same bytes as in it, never of a later step, and no fault goes unheard."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sproutlm.config.schema import OptimizerConfig
from sproutlm.errors import CheckpointError, Interrupted
from sproutlm.train import saver as saver_module
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.saver import BackgroundSaver
from sproutlm.train.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


class Gated(Checkpointer):
    """Writes tensors only once ``gate`` is open; remembers which steps began and which are done."""

    def __init__(self, folder: Path, keep_last: int = 9) -> None:
        super().__init__(folder, keep_last, say=lambda sentence: None)
        self.gate = threading.Event()
        self.events: list[tuple[str, int]] = []
        self.full: set[int] = set()  # steps for which the disk is full

    def save(self, step: int, *args: Any, **kwargs: Any) -> Path:
        self.events.append(("begun", step))
        path = super().save(step, *args, **kwargs)
        self.events.append(("durable", step))
        return path

    def _write_tensors(self, folder: Path, model: Any, optimizer: Any) -> Any:
        assert self.gate.wait(20), "the loop never went on"
        if int(folder.name[6:-4]) in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._write_tensors(folder, model, optimizer)


def with_gate(trainer: Trainer, checkpointer: Gated) -> Trainer:
    trainer.checkpointer, trainer._saver = checkpointer, BackgroundSaver(checkpointer)
    return trainer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def slow_copy(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    whole = saver_module._copy_into

    def slow(*args: Any) -> dict[str, Tensor]:
        time.sleep(seconds)
        return whole(*args)

    monkeypatch.setattr(saver_module, "_copy_into", slow)


# --- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{"name": "muon"}, {"name": "adamw"}, {"name": "adamw", "state_dtype": "int8"}])
def test_the_bytes_are_those_of_a_save_in_the_loop_though_the_copy_is_late(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any, compute: torch.dtype
) -> None:
    """Every step is saved. The copy begins long after the next step's gradients are there: were the update not to wait, the
    file would hold its weights. Window sums and the best validation so far are those of the step, too."""
    slow_copy(monkeypatch, 0.05)  # twice a save; a step of this model takes 10 ms
    found = []
    for background in (False, True):
        trainer = make_trainer(
            steps=5, save_every=1, keep_last=9, log_every=3, validate_every=2, async_save=background, compute=compute,
            folder=tmp_path / str(background), optimizer=OptimizerConfig(**how),
            evaluators=[lambda model, step: {"val_loss": 9.0 - step}],
        )  # fmt: skip
        trainer.fit()
        trainer.close()
        found.append(contents(trainer.checkpointer.folder))
    assert found[0].keys() == found[1].keys() and len([n for n in found[0] if n.endswith("COMPLETE")]) == 5
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_a_weight_that_changes_after_the_copy_is_not_in_the_file(tmp_path: Path) -> None:
    checkpointer = Gated(tmp_path)
    saver = BackgroundSaver(checkpointer)
    weight, average = torch.arange(8.0).reshape(2, 4).T, torch.ones(3, dtype=torch.bfloat16)
    saver.save(1, {"w": weight}, {"w/avg": average}, {}, {})
    saver.wait_for_copy()
    weight.zero_()
    average.zero_()
    checkpointer.gate.set()
    saver.finish()
    found = checkpointer.latest()
    assert found is not None
    assert torch.equal(found.model_tensors()["w"], torch.arange(8.0).reshape(2, 4).T)
    assert torch.equal(found.optimizer_tensors()["w/avg"], torch.ones(3, dtype=torch.bfloat16))


def test_an_update_waits_for_the_copy(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(async_save=True)
    trainer.train_step(0)
    order: list[str] = []
    update = trainer.optimizers.step

    def late(*args: Any) -> dict[str, Tensor]:
        time.sleep(0.1)
        order.append("copied")
        return {}

    def noted(*args: float) -> None:
        order.append("updated")
        update(*args)

    monkeypatch.setattr(saver_module, "_copy_into", late)
    monkeypatch.setattr(trainer.optimizers, "step", noted)
    trainer.state.step = 1
    trainer.save(durable=False)
    trainer.train_step(1)
    trainer.close()
    assert order == ["copied", "copied", "updated"]


# --- beside the loop ----------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_a_checkpoint_is_written_and_no_two_are(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """The first write ends only when the third step is done; the second save waits for it."""
    gated = Gated(tmp_path / "c")

    def opening(model: Any, step: int) -> dict[str, float]:
        if step == 3:
            assert ("durable", 2) not in gated.events
            gated.gate.set()
        return {}

    trainer = make_trainer(steps=6, save_every=2, async_save=True, keep_last=9, validate_every=1, evaluators=[opening])
    with_gate(trainer, gated)
    trainer.fit()
    assert gated.events == [(what, step) for step in (2, 4, 6) for what in ("begun", "durable")]


def test_copies_are_made_in_the_same_memory_again(tmp_path: Path) -> None:
    saver = BackgroundSaver(Checkpointer(tmp_path))
    weights = {"w": torch.zeros(100)}
    places = []
    for step in (1, 2):
        saver.save(step, weights, {}, {}, {})
        saver.finish()
        places.append(saver._copies[0]["w"].data_ptr())
    assert places[0] == places[1] != weights["w"].data_ptr()


# --- the end of a run ---------------------------------------------------------------------------------------------------


def open_soon(gated: Gated) -> None:
    threading.Timer(0.2, gated.gate.set).start()


def test_the_last_checkpoint_is_durable_when_the_run_returns(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = with_gate(make_trainer(steps=2, save_every=1, async_save=True), gated := Gated(tmp_path / "c"))
    open_soon(gated)
    trainer.fit()
    assert gated.events[-1] == ("durable", 2) and Checkpointer(gated.folder).steps() == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_durable_when_it_says_so(
    make_trainer: MakeTrainer, tmp_path: Path, number: signal.Signals
) -> None:
    def ask(model: Any, step: int) -> dict[str, float]:
        if step == 3:
            os.kill(os.getpid(), number)
        return {}

    trainer = make_trainer(steps=9, validate_every=1, save_every=2, async_save=True, evaluators=[ask])
    with_gate(trainer, gated := Gated(tmp_path / "c"))
    open_soon(gated)
    with pytest.raises(Interrupted, match="saved at step 3"):
        trainer.fit()
    assert gated.events[-1] == ("durable", 3) and Checkpointer(gated.folder).steps() == [2, 3]


def test_closing_waits_for_the_write(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = with_gate(make_trainer(async_save=True), gated := Gated(tmp_path / "c"))
    trainer.train_step(0)
    trainer.state.step = 1
    trainer.save(durable=False)
    open_soon(gated)
    trainer.close()
    assert gated.events == [("begun", 1), ("durable", 1)]


# --- a disk that fills ----------------------------------------------------------------------------------------------------


def full_at(trainer: Trainer, folder: Path, *steps: int) -> Gated:
    gated = Gated(folder)
    with_gate(trainer, gated)
    gated.full = set(steps)
    gated.gate.set()
    return gated


def test_a_full_disk_ends_the_run_at_the_next_step_with_the_sentence(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=400, save_every=2, async_save=True)
    gated = full_at(trainer, tmp_path / "c", 4)
    with pytest.raises(CheckpointError, match="step 4 could not be written: the disk is full; .* step 2 is intact"):
        trainer.fit()
    assert trainer.state.step <= 6, "said no later than at the next save"
    trainer.close()  # said once
    found = gated.latest()
    assert found is not None and found.step == 2 and not list(gated.folder.glob(".step-*"))


def test_a_save_at_the_end_makes_good_one_that_failed_before(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=3, save_every=2, async_save=True)
    gated = full_at(trainer, tmp_path / "c", 2)
    trainer._saver.check = lambda: None  # type: ignore[method-assign] # as if it had failed only now
    said: list[str] = []
    trainer.say = said.append
    trainer.fit()
    assert gated.steps() == [3]
    assert sum("warning: " in s and "step 2 could not be written: the disk is full" in s for s in said) == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_fault_at_the_end_is_raised_but_not_in_place_of_another(
    make_trainer: MakeTrainer, tmp_path: Path, ended: bool
) -> None:
    trainer = make_trainer(async_save=True)
    full_at(trainer, tmp_path / "c", 1)
    said: list[str] = []
    trainer.say = said.append
    trainer.train_step(0)
    trainer.state.step = 1
    trainer.save(durable=False)
    with pytest.raises(ValueError if ended else CheckpointError, match="another" if ended else "the disk is full"):
        try:
            if ended:
                raise ValueError("another")
        finally:
            trainer.close()
    assert len(said) == ended
