"""The loop: one division per step, figures that mean what they say, and a run that is saved whenever it ends."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sproutlm.config.schema import OptimizerConfig
from sproutlm.data.loader import IGNORE, Batch
from sproutlm.errors import Interrupted, SproutError
from sproutlm.objectives.next_token import next_token
from sproutlm.train import trainer as trainer_module
from sproutlm.train.metrics import read_metrics
from sproutlm.train.state import stream_seed
from sproutlm.train.trainer import Trainer


def gradients(trainer: Trainer, step: int = 0) -> tuple[dict[str, Tensor], tuple[float, int, float]]:
    """The divided and clipped gradients that the optimizers are given in one step, and what the step reports."""
    seen: dict[str, Tensor] = {}

    def capture(multiplier: float, progress: float) -> None:
        seen.update({n: m.grad.clone() for n, m in trainer.weights.masters.items() if m.grad is not None})

    trainer.optimizers.step = capture  # type: ignore[method-assign]
    return seen, trainer.train_step(step)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {n: m.detach().clone() for n, m in trainer.weights.masters.items()}


# --- accumulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_rows", [1, 2, 3, 5])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole(make_trainer, micro_rows: int) -> None:
    """Pitfall 22: 8 = 8x1 = 4x2 = 3+3+2 = 5+3 rows, though no two rows train the same number of tokens."""
    whole, (loss, count, norm) = gradients(make_trainer(clip=0))
    parts, (part_loss, part_count, part_norm) = gradients(make_trainer(clip=0, micro_rows=micro_rows))
    assert count == part_count == sum(range(1, 9))
    assert loss == pytest.approx(part_loss, rel=1e-6) and norm == pytest.approx(part_norm, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_over_all_trained_tokens(make_trainer) -> None:
    """Pitfall 22, against torch's own mean over the whole batch."""
    trainer = make_trainer(clip=0, micro_rows=3)
    batch = trainer.loader.batch(0)
    logits = trainer.model(batch.tokens, batch.positions)
    mean = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
    expected = torch.autograd.grad(mean, list(trainer.weights.masters.values()))
    got, (loss, count, _) = gradients(trainer)
    assert loss / count == pytest.approx(mean.item(), rel=1e-6)
    for name, gradient in zip(trainer.weights.masters, expected, strict=True):
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6)


def test_what_steers_experts_is_not_in_the_gradient_norm(make_trainer) -> None:
    """The surplus of load is no gradient of the loss: it must neither be clipped nor make the others be."""
    trainer = make_trainer(clip=1.0)
    bias = torch.zeros(4)
    bias.grad = torch.full((4,), 1e6)
    for master in trainer.weights.masters.values():
        master.grad = torch.full_like(master, 1e-4)
    trainer.weights.masters["layers.0.mlp.expert_bias"] = bias
    norm, _ = trainer._norm_and_loss(*trainer._divide(1), [])
    trainer._clip(norm)
    assert norm < 1
    assert bias.grad.tolist() == [1e6] * 4
    assert all((m.grad == 1e-4).all() for n, m in trainer.weights.masters.items() if "expert_bias" not in n)


def test_bf16_accumulation_is_near_the_float32_one(make_trainer) -> None:
    """Micro-batches are summed in float32, so that eight bf16 ones cost no more precision than one."""
    full, _ = gradients(make_trainer(clip=0))
    low, _ = gradients(make_trainer(clip=0, micro_rows=1, compute=torch.bfloat16))
    for name, gradient in full.items():
        assert low[name].dtype == torch.float32
        if gradient.norm() > 1e-6:  # the writers into the residual stream start at zero, and so do some gradients
            assert torch.cosine_similarity(low[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


class Masked:
    """Rows of another source, some of them with no target at all."""

    def __init__(self, inner: Any, empty: slice) -> None:
        self.inner, self.empty = inner, empty

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = self.inner.batch(step)
        targets = batch.targets.clone()
        targets[self.empty] = IGNORE
        return Batch(batch.tokens, targets, batch.positions, None, batch.row_ids)


def test_a_micro_batch_without_targets_changes_nothing(make_trainer) -> None:
    """Pitfall 23: no NaN, and the others count as if it were not there."""
    loader = make_trainer().loader
    whole, _ = gradients(make_trainer(Masked(loader, slice(2, 6)), clip=0))
    parts, (_, count, norm) = gradients(make_trainer(Masked(loader, slice(2, 6)), clip=0, micro_rows=2))
    assert count == 1 + 2 + 7 + 8 and math.isfinite(norm)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_step_without_any_target_is_refused_by_name(make_trainer) -> None:
    """Pitfall 23: a division by zero would be NaN in every weight."""
    trainer = make_trainer(Masked(make_trainer().loader, slice(None)))
    before = weights_of(trainer)
    with pytest.raises(SproutError, match="step 1: no row of the batch trains a token"):
        trainer.fit()
    assert all(torch.equal(before[n], w) for n, w in weights_of(trainer).items())


# --- clipping and faults ------------------------------------------------------------------------------------------------


def test_clipping_limits_the_norm_and_keeps_the_direction(make_trainer) -> None:
    free, (_, _, norm) = gradients(make_trainer(clip=0))
    clipped, (_, _, reported) = gradients(make_trainer(clip=norm / 4))
    assert reported == pytest.approx(norm), "the norm before clipping is what is reported"
    after = torch.linalg.vector_norm(torch.stack([g.norm() for g in clipped.values()]))
    assert after.item() == pytest.approx(norm / 4, rel=1e-5)
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] / 4, rtol=1e-4, atol=1e-8)
    unclipped, _ = gradients(make_trainer(clip=norm * 2))
    assert all(torch.equal(unclipped[n], free[n]) for n in free)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_stops_before_the_update(make_trainer, poison: float, compute) -> None:
    """Pitfall 33: the step and its rows are named; the weights are those of the step before."""
    held: dict[str, dict[str, Tensor]] = {}

    def objective(model, batch):  # type: ignore[no-untyped-def]
        loss, count, metrics = next_token(model, batch)
        if 16 in batch.row_ids:  # a row of the third step
            held["weights"] = weights_of(trainer)
            loss = loss * poison
        return loss, count, metrics

    trainer = make_trainer(objective=objective, micro_rows=3, compute=compute)
    with pytest.raises(SproutError, match=r"step 3: .*not finite.*rows 16, 17, 18, .*The weights are those of step 2"):
        trainer.fit()
    assert all(torch.equal(held["weights"][n], w) for n, w in weights_of(trainer).items())
    assert all(w.isfinite().all() for w in weights_of(trainer).values())
    assert trainer.checkpointer.steps() == []


# --- metrics ------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_tokens_per_second_leaves_out_the_first_step_and_what_is_not_training(make_trainer, monkeypatch) -> None:
    """Pitfall 31: 36 trained targets a step; the first step takes 100 s, the others 2 s, a validation 50 s."""
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", clock)

    def objective(model, batch):  # type: ignore[no-untyped-def]
        clock.now += 100 if clock.now == 0 else 2
        return next_token(model, batch)

    def evaluator(model, step: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
        clock.now += 50
        return {"val_loss": 1.0}

    trainer = make_trainer(objective=objective, evaluators=[evaluator], validate_every=2, steps=6)
    trainer.fit()
    rates = [r["tokens_per_second"] for r in read_metrics(trainer.metrics.path) if "loss" in r]
    assert rates == [0.0, 18.0, 18.0, 18.0, 18.0, 18.0]


def test_each_row_of_the_metrics_says_what_it_says(make_trainer) -> None:
    trainer = make_trainer(steps=6, log_every=4, optimizer=OptimizerConfig(lr=0.02))
    losses: list[tuple[float, int]] = []
    step = trainer.train_step

    def recorded(s: int) -> tuple[float, int, float]:
        out = step(s)
        losses.append(out[:2])
        return out

    trainer.train_step = recorded  # type: ignore[method-assign]
    result = trainer.fit()
    rows = read_metrics(trainer.metrics.path)
    assert [r["step"] for r in rows] == [4, 6], "every log_every steps, and the last"
    assert [r["tokens"] for r in rows] == [4 * 36, 6 * 36]
    # The mean over the tokens of the window, not a mean of means, nor the last step's.
    for row, window in zip(rows, (losses[:4], losses[4:]), strict=True):
        assert row["loss"] == pytest.approx(sum(loss for loss, _ in window) / sum(n for _, n in window), rel=1e-12)
    assert rows[-1]["lr_multiplier"] == pytest.approx(0.05) and rows[-1]["lr"] == pytest.approx(0.05 * 0.02)
    assert {"grad_norm", "memory_mb", "tokens_per_second"} <= rows[0].keys()
    assert result.loss == rows[-1]["loss"] and result.tokens == 6 * 36


def test_the_model_learns(make_trainer) -> None:
    trainer = make_trainer(steps=60)
    trainer.fit()
    losses = [r["loss"] for r in read_metrics(trainer.metrics.path)]
    assert losses[0] == pytest.approx(math.log(32), rel=0.05) and losses[-1] < 0.5 * losses[0]


# --- validation, best, early stop ---------------------------------------------------------------------------------------


def validating(values: dict[int, float]):  # type: ignore[no-untyped-def]
    return [lambda model, step: {"val_loss": values[step]}]


def test_the_last_k_checkpoints_and_the_best_are_kept(make_trainer) -> None:
    values = {2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0, 10: 2.0}
    trainer = make_trainer(steps=10, evaluators=validating(values), validate_every=2, save_every=2, keep_last=2)
    trainer.fit()
    assert trainer.checkpointer.steps() == [4, 8, 10]
    assert trainer.state.best_step == 4 and trainer.state.best == 1.0


def test_a_new_best_is_saved_also_between_the_regular_saves(make_trainer) -> None:
    trainer = make_trainer(steps=6, evaluators=validating({3: 1.0, 6: 2.0}), validate_every=3)
    trainer.fit()
    assert trainer.checkpointer.steps() == [3, 6]


def test_early_stopping_ends_the_run_saves_it_and_stays_ended(make_trainer) -> None:
    values = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.5, **dict.fromkeys(range(5, 21), 9.0)}
    settings: dict[str, Any] = dict(
        steps=20, evaluators=validating(values), validate_every=1, early_stop=2, keep_last=1
    )
    trainer = make_trainer(**settings)
    result = trainer.fit()
    assert result.stopped_early and result.step == 4
    assert trainer.checkpointer.steps() == [2, 4], "the best and the last"
    again = make_trainer(**settings)
    assert again.fit().step == 4, "the same command does not train past the stop"
    assert all(torch.equal(weights_of(trainer)[n], w) for n, w in weights_of(again).items())


def test_samples_are_shown_and_recorded(make_trainer) -> None:
    trainer = make_trainer(steps=4, sample_every=2, sampler=lambda model, step: [f"text of step {step}"])
    trainer.fit()
    rows = read_metrics(trainer.metrics.path)
    assert [r["sample"] for r in rows if "sample" in r] == ["text of step 2", "text of step 4"]
    assert any("text of step 4" in line for line in trainer.said)


# --- saving and continuing ----------------------------------------------------------------------------------------------


def test_a_run_shorter_than_the_interval_is_saved_at_its_end(make_trainer) -> None:
    """Pitfall 28."""
    trainer = make_trainer(steps=3, save_every=1000)
    trainer.fit()
    checkpoint = trainer.checkpointer.latest()
    assert checkpoint is not None and checkpoint.step == 3
    stored = checkpoint.model_tensors()
    assert all(torch.equal(stored[n], w) and stored[n].dtype == torch.float32 for n, w in weights_of(trainer).items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_boundary(make_trainer, number: signal.Signals) -> None:
    """Pitfall 28: asked in the middle of step 3, saved after it; the handlers are then those from before."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def objective(model, batch):  # type: ignore[no-untyped-def]
        if 16 in batch.row_ids:
            os.kill(os.getpid(), number)
        return next_token(model, batch)

    trainer = make_trainer(objective=objective, micro_rows=2)
    with pytest.raises(Interrupted, match=f"{number.name}: saved at step 3 of 6") as error:
        trainer.fit()
    assert error.value.exit_code == 130
    assert trainer.checkpointer.steps() == [3]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_a_second_ctrl_c_stops_at_once(make_trainer) -> None:
    def objective(model, batch):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGINT)
        return next_token(model, batch)

    trainer = make_trainer(objective=objective, micro_rows=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.checkpointer.steps() == []


@pytest.mark.parametrize(("compute", "stop_after"), [(torch.float32, 1), (torch.float32, 5), (torch.bfloat16, 7)])
def test_stopped_and_continued_equals_uninterrupted(make_trainer, tmp_path: Path, compute, stop_after: int) -> None:
    """Pitfall 26: dropout on, several micro-batches a step; weights, optimizer state and metrics are equal to the bit."""

    def stopping(model, batch):  # type: ignore[no-untyped-def]
        if (stop_after - 1) * 8 in batch.row_ids:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token(model, batch)

    evaluators = [lambda model, step: {"val_loss": float(step % 3)}]
    settings: dict[str, Any] = dict(
        steps=8, micro_rows=3, dropout=0.2, compute=compute, log_every=3, validate_every=2, evaluators=evaluators
    )
    whole = make_trainer(folder=tmp_path / "whole", **settings)
    whole.fit()
    first = make_trainer(folder=tmp_path / "parts", objective=stopping, **settings)
    with pytest.raises(Interrupted):
        first.fit()
    second = make_trainer(folder=tmp_path / "parts", **settings)
    result = second.fit()
    assert result.resumed_from == stop_after and result.step == 8
    assert all(torch.equal(weights_of(second)[n], w) for n, w in weights_of(whole).items())
    tensors = second.optimizers.tensors()
    assert all(torch.equal(tensors[n], t) for n, t in whole.optimizers.tensors().items())
    assert second.state == whole.state

    def timeless(trainer: Trainer) -> list[dict[str, Any]]:
        clock = trainer.metrics.CLOCK_FIELDS
        return [{k: v for k, v in r.items() if k not in clock} for r in read_metrics(trainer.metrics.path)]

    assert timeless(second) == timeless(whole)


def test_dropout_draws_anew_in_every_micro_batch() -> None:
    seeds = {stream_seed(seed, step, micro) for seed in range(3) for step in range(5) for micro in range(4)}
    assert len(seeds) == 60
    assert stream_seed(1, 2, 3) == stream_seed(1, 2, 3)


def test_dropout_is_on_in_training_also_after_a_validation(make_trainer) -> None:
    modes = []

    def objective(model, batch):  # type: ignore[no-untyped-def]
        modes.append(model.training)
        return next_token(model, batch)

    def evaluator(model, step: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
        model.eval()
        return {"val_loss": 1.0}

    def sampler(model, step: int) -> list[str]:  # type: ignore[no-untyped-def]
        model.eval()
        return []

    make_trainer(
        objective=objective, evaluators=[evaluator], sampler=sampler, validate_every=1, sample_every=1, steps=3
    ).fit()
    assert modes == [True] * 3


def test_a_metrics_line_cut_off_by_a_kill_is_written_again(make_trainer) -> None:
    trainer = make_trainer(steps=4, save_every=2)
    trainer.fit()
    expected = trainer.metrics.path.read_text().splitlines()
    path = trainer.metrics.path
    path.write_text("\n".join(expected[:3]) + "\n" + expected[3][: len(expected[3]) // 2])
    trainer.metrics.rewind(2)
    assert path.read_text().splitlines() == expected[:2]
    assert [json.loads(line)["step"] for line in expected] == [1, 2, 3, 4]


# --- the objective's own figures ------------------------------------------------------------------------------------------


def measured(model: Any, batch: Batch) -> tuple[Tensor, int, dict[str, tuple[float, float]]]:
    loss, count, _ = next_token(model, batch)
    return loss, count, {"mean_first": (float(batch.tokens[:, 0].sum()), float(len(batch.tokens)))}


@pytest.mark.parametrize("streams", [1, 2])
def test_an_objectives_metrics_are_means_over_the_logged_window_also_across_a_resume(
    make_trainer, tmp_path: Path, streams: int
) -> None:
    def rows(folder: Path, kill_at: int | None) -> list[dict[str, Any]]:
        made = {"objective": measured, "micro_rows": 3, "streams": streams, "folder": folder}
        trainer = make_trainer(**made, log_every=4, save_every=1, steps=8)
        if kill_at:
            step = trainer.train_step

            def killed(number: int) -> Any:
                if number == kill_at:
                    raise KeyboardInterrupt
                return step(number)

            trainer.train_step = killed
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
            trainer = make_trainer(**made, log_every=4, save_every=1, steps=8)
        trainer.fit()
        return [row for row in read_metrics(trainer.metrics.path) if "mean_first" in row]

    whole, resumed = rows(tmp_path / "whole", None), rows(tmp_path / "killed", 6)
    assert [row["mean_first"] for row in whole] == [row["mean_first"] for row in resumed]
    loader = make_trainer(folder=tmp_path / "other").loader
    first = [loader.batch(step).tokens[:, 0].float() for step in range(4)]
    assert whole[0]["step"] == 4 and whole[0]["mean_first"] == pytest.approx(float(torch.cat(first).mean()))
