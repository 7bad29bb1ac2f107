"""Micro-batches side by side: the same weights on each run, and the gradients that they have one after the other."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sproutlm.config.schema import Recipe
from sproutlm.data.loader import IGNORE, Batch
from sproutlm.errors import SproutError
from sproutlm.objectives.next_token import next_token
from sproutlm.pipeline.split import choose_streams, micro_rows
from sproutlm.train.streams import Streams
from sproutlm.train.trainer import Trainer


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {n: m.detach().clone() for n, m in trainer.weights.masters.items()}


def step_gradients(trainer: Trainer) -> tuple[dict[str, Tensor], tuple[float, int, float]]:
    """The divided gradients of the first step, and what the step reports."""
    seen: dict[str, Tensor] = {}

    def capture(multiplier: float, progress: float) -> None:
        seen.update({n: m.grad.clone() for n, m in trainer.weights.masters.items() if m.grad is not None})

    trainer.optimizers.step = capture  # type: ignore[method-assign]
    return seen, trainer.train_step(0)


class Silenced:
    """Rows of another source; those in ``empty`` train nothing."""

    def __init__(self, inner: Any, empty: slice) -> None:
        self.inner, self.empty = inner, empty

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = self.inner.batch(step)
        targets = batch.targets.clone()
        targets[self.empty] = IGNORE
        return Batch(batch.tokens, targets, batch.positions, None, batch.row_ids)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_two_runs_with_two_streams_give_the_same_weights_to_the_bit(
    make_trainer, tmp_path: Path, compute: torch.dtype
) -> None:
    def uneven(model, part):  # type: ignore[no-untyped-def]
        time.sleep(0.002 * ((threading.get_ident() + time.perf_counter_ns()) % 3))  # who is done first changes
        return next_token(model, part)

    runs = []
    for name in ("a", "b"):
        trainer = make_trainer(folder=tmp_path / name, micro_rows=2, streams=2, objective=uneven, compute=compute)
        assert trainer.streams is not None
        trainer.fit()
        runs.append(weights_of(trainer))
    assert all(torch.equal(runs[0][n], w) for n, w in runs[1].items())


@pytest.mark.parametrize("rows", [1, 2, 3])  # 8, 4 and 3 parts for two streams
def test_gradients_equal_those_of_the_same_micro_batches_in_turn(make_trainer, rows: int) -> None:
    alone, figures = step_gradients(make_trainer(clip=0, micro_rows=rows))
    beside, other = step_gradients(make_trainer(clip=0, micro_rows=rows, streams=2))
    assert figures == pytest.approx(other, rel=1e-6) and alone.keys() == beside.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(beside[name], gradient, rtol=1e-6, atol=1e-6)


def test_results_come_in_the_order_of_the_parts_and_two_are_under_way_at_once(make_trainer) -> None:
    trainer = make_trainer()
    together = threading.Barrier(2, timeout=10)  # breaks unless two parts meet here
    under_way: set[int] = set()
    most = 0

    def objective(model, part):  # type: ignore[no-untyped-def]
        nonlocal most
        row = int(part.row_ids[0])
        under_way.add(row)
        together.wait()
        most = max(most, len(under_way))
        time.sleep(0.05 if row % 2 == 0 else 0)  # the first of each two is done last
        result = next_token(model, part)
        under_way.discard(row)
        return result

    streams = Streams(2)
    counts = [count for _, count, _, _ in streams.run(trainer.model, objective, trainer.loader.batch(0).split(1))]
    streams.close()
    assert counts == list(range(1, 9)) and most == 2


def test_parts_without_trained_tokens_change_nothing(make_trainer) -> None:
    loader = make_trainer().loader
    whole, _ = step_gradients(make_trainer(Silenced(loader, slice(2, 6)), clip=0))
    parts, (_, count, _) = step_gradients(make_trainer(Silenced(loader, slice(2, 6)), clip=0, micro_rows=2, streams=2))
    assert count == 1 + 2 + 7 + 8
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(SproutError, match="step 1: no row of the batch trains a token"):
        make_trainer(Silenced(loader, slice(None)), micro_rows=2, streams=2).fit()


def test_an_error_in_a_stream_ends_the_run_with_its_sentence(make_trainer) -> None:
    def objective(model, part):  # type: ignore[no-untyped-def]
        raise SproutError("this part cannot be trained")

    with pytest.raises(SproutError, match="this part cannot be trained"):
        make_trainer(micro_rows=2, streams=2, objective=objective).fit()


def test_with_dropout_micro_batches_take_turns_even_when_streams_were_asked_for(make_trainer) -> None:
    """One generator serves the whole process: two threads drawing from it would never draw the same twice."""
    assert make_trainer(streams=2, dropout=0.1).streams is None
    assert make_trainer(streams=2).streams is not None


@pytest.mark.parametrize(
    ("changes", "device", "parameters", "streams", "rows"),
    [
        ({}, "cpu", 2_000_000, 4, 2),
        ({"train": {"batch_tokens": 256}}, "cpu", 2_000_000, 2, 1),  # no more streams than rows
        ({"model": {"dropout": 0.1}}, "cpu", 2_000_000, 1, 8),
        ({"train": {"micro_batch": 3}}, "cpu", 2_000_000, 1, 3),
        ({}, "cuda", 2_000_000, 1, 8),
        ({}, "cpu", 50_000_000, 1, 8),
        ({"train": {"streams": 3}}, "cpu", 50_000_000, 3, 3),
    ],
)
def test_streams_are_chosen_where_they_help_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], device: str, parameters: int, streams: int, rows: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    fields: dict[str, Any] = {
        "name": "small",
        "data": {"train": [{"path": "text.jsonl"}], "seq_len": 128},
        "model": {"dim": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 128},
        "train": {"steps": 1, "batch_tokens": 1024},
    }
    recipe = Recipe.model_validate(
        {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in fields.items()}
    )
    assert recipe.model is not None
    chosen = choose_streams(recipe, recipe.model, device, parameters)
    split = recipe.model_copy(update={"train": recipe.train.model_copy(update={"streams": chosen})})
    assert (chosen, micro_rows(split)) == (streams, rows)
