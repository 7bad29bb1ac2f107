"""fp16 with a scaled loss, on the CPU: what overflows is left out, and all else is as without a scale."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sproutlm.config.schema import OptimizerConfig
from sproutlm.errors import Interrupted, SproutError
from sproutlm.objectives.next_token import next_token
from sproutlm.train import loss_scale
from sproutlm.train.loss_scale import LEAST, START, LossScale
from sproutlm.train.metrics import read_metrics
from sproutlm.train.precision import choose_compute
from sproutlm.train.state import TrainState
from sproutlm.train.trainer import Trainer

FP16 = torch.float16


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: master.detach().clone() for name, master in trainer.weights.masters.items()}


def divided(trainer: Trainer, scale: float) -> tuple[dict[str, Tensor], tuple[float, int, float]]:
    """The gradients that the optimizers get at ``scale``, and what the step reports."""
    seen: dict[str, Tensor] = {}

    def capture(multiplier: float, progress: float) -> None:
        seen.update({n: m.grad.clone() for n, m in trainer.weights.masters.items() if m.grad is not None})

    trainer.optimizers.step = capture  # type: ignore[method-assign]
    trainer.state.loss_scale = LossScale(scale)
    return seen, trainer.train_step(0)


class Overflowing:
    """Next-token prediction whose gradient is beyond fp16 in the steps named; ``scale`` as it was told."""

    def __init__(self, *calls: int) -> None:
        self.calls, self.call = calls, -1

    def __call__(self, model: Any, batch: Any, scale: float = 1.0) -> Any:
        self.call += 1
        loss, count, metrics = next_token(model, batch, scale=scale)
        return (loss + (loss - loss.detach()) * 1e9 if self.call in self.calls else loss), count, metrics


@pytest.mark.parametrize("streams", [1, 2])
def test_what_is_divided_again_is_the_gradient_without_a_scale(make_trainer, streams: int) -> None:
    """At any scale that neither overflows nor is too small; and the loss that is reported is the loss."""
    full, expected = divided(make_trainer(clip=0, micro_rows=2), START)
    for scale in (2.0**8, START):
        trainer = make_trainer(clip=0, micro_rows=2, compute=FP16, streams=streams)
        found, (loss, count, norm) = divided(trainer, scale)
        assert loss == pytest.approx(expected[0], rel=1e-3) and count == expected[1]
        assert norm == pytest.approx(expected[2], rel=5e-3)
        for name, gradient in full.items():
            assert found[name].dtype == torch.float32

            assert (found[name] - gradient).norm() <= 0.01 * gradient.norm() + 1e-6, name


def test_in_float32_a_scale_changes_no_bit(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, figures = divided(make_trainer(clip=0), START)
    monkeypatch.setattr(LossScale, "factor", lambda self, tokens: 2.0**13)
    scaled, same = divided(make_trainer(clip=0), START)
    assert figures == same and all(torch.equal(plain[name], scaled[name]) for name in plain)


def test_an_overflow_leaves_the_update_out_and_halves_the_scale(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=4, compute=FP16, objective=Overflowing(1, 2))
    seen = []
    inner = trainer.train_step
    trainer.train_step = lambda step: (seen.append(weights_of(trainer)), inner(step))[1]  # type: ignore[method-assign]
    trainer.fit()
    seen.append(weights_of(trainer))
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(seen, seen[1:], strict=False)]
    assert same == [False, True, True, False]
    assert trainer.state.loss_scale == LossScale(START / 4, finite_steps=1, skipped=2)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss_scale"] / START for row in rows] == [1, 0.5, 0.25, 0.25]
    assert [row["updates_left_out"] for row in rows] == [0, 1, 2, 2]
    assert ["grad_norm" in row for row in rows] == [True, False, False, True]
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    assert any("step 3: fp16 gradients overflowed" in s and "(2 so far)" in s for s in trainer.said)


def test_the_scale_grows_after_enough_finite_steps(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    trainer = make_trainer(steps=5, compute=FP16)
    trainer.fit()
    assert trainer.state.loss_scale == LossScale(START * 2, finite_steps=2, skipped=0)


def test_where_the_least_scale_overflows_the_run_ends_with_its_sentence(make_trainer) -> None:
    trainer = make_trainer(compute=FP16, objective=Overflowing(*range(100)))
    trainer.state.loss_scale = LossScale(2 * LEAST)
    before = weights_of(trainer)
    trainer.train_step(0)
    with pytest.raises(SproutError, match="step 2: the loss or gradient is not finite"):
        trainer.train_step(1)
    assert all(torch.equal(before[n], w) for n, w in weights_of(trainer).items())


def test_the_factor_is_a_power_of_two_near_the_mean() -> None:
    for tokens in (1, 96, 8192, 500_000):
        factor = LossScale().factor(tokens)
        assert math.log2(factor) % 1 == 0 and START / tokens / 2 < factor <= START / tokens


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_is_continued_is_that_which_never_stopped(make_trainer, tmp_path: Path, optimizer: Any) -> None:
    """Bit for bit: with overflows before and after the cut, and a scale that is not the first one."""
    config = OptimizerConfig(name=optimizer, lr=0.01)
    made = {"steps": 6, "compute": FP16, "save_every": 3, "optimizer": config}
    whole = make_trainer(folder=tmp_path / "whole", objective=Overflowing(1, 4), **made)
    whole.fit()
    cut = make_trainer(folder=tmp_path / "cut", objective=Overflowing(1), **made)
    inner = cut.train_step

    def stopped_in_the_third(step: int) -> Any:
        cut.stop.number = signal.SIGTERM if step == 2 else 0
        return inner(step)

    cut.train_step = stopped_in_the_third  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        cut.fit()
    again = make_trainer(folder=tmp_path / "cut", objective=Overflowing(1), **made)
    assert again.fit().resumed_from == 3
    assert again.state.loss_scale == whole.state.loss_scale == LossScale(START / 4, finite_steps=1, skipped=2)
    assert all(torch.equal(whole.weights.masters[n], w) for n, w in weights_of(again).items())


def test_a_state_of_an_earlier_version_has_no_scale() -> None:
    assert TrainState.restored({"step": 4}).loss_scale is None
    assert TrainState.restored({"loss_scale": {"scale": 8.0, "finite_steps": 1, "skipped": 2}}).loss_scale == LossScale(
        8.0, 1, 2
    )


@pytest.mark.parametrize(
    ("bf16", "capability", "chosen"),
    [(True, (8, 0), torch.bfloat16), (False, (7, 5), FP16), (False, (7, 0), FP16), (False, (6, 1), torch.float32)],
)
def test_auto_takes_fp16_on_cards_that_have_units_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, capability: tuple[int, int], chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_compute(torch.device("cuda"))[0] == chosen
