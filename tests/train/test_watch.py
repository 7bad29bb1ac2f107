"""The figures by group and of the machine: right, exact where they can be, and made at logging steps only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sproutlm.train import watch as watch_module
from sproutlm.train.metrics import read_metrics
from sproutlm.train.watch import Watch, Work, group_of


@pytest.mark.parametrize(
    ("name", "ndim", "group"),
    [
        ("embed_tokens.weight", 2, "embedding"),
        ("layers.3.attention.q_proj.weight", 2, "attention"),
        ("layers.3.attention.q_proj.bias", 1, "scalars"),
        ("layers.0.mlp.down_proj.weight", 2, "mlp"),
        ("layers.0.mlp.router.weight", 2, "router"),
        ("norm.weight", 1, "scalars"),
        ("lm_head.weight", 2, "head"),
        ("something.else", 2, "other"),
    ],
)
def test_each_parameter_has_its_group(name: str, ndim: int, group: str) -> None:
    assert group_of(name, ndim) == group


def test_norms_by_group_make_up_the_norm_and_rates_are_those_of_the_optimizers(make_trainer) -> None:
    trainer = make_trainer(steps=4, clip=1e-3)  # norms are those before clipping
    trainer.fit()
    c = trainer.optimizers.config
    for row in read_metrics(trainer.metrics.path):
        norms = [value for key, value in row.items() if key.startswith("grad_norm/")]
        assert math.hypot(*norms) == pytest.approx(row["grad_norm"], rel=1e-4)
        assert row["lr/mlp"] == pytest.approx(row["lr_multiplier"] * c.lr)
        assert row["lr/embedding"] == pytest.approx(row["lr_multiplier"] * c.embedding_lr)
        assert {"lr/attention", "lr/scalars", "update_ratio/mlp", "update_ratio/embedding"} <= row.keys()


def test_the_update_ratio_of_a_small_group_is_exact(make_trainer) -> None:
    trainer = make_trainer(steps=2, log_every=2)
    trainer.train_step(0)
    mlp = {n: w.detach().clone() for n, w in trainer.weights.masters.items() if ".mlp." in n}
    trainer.train_step(1)
    change = math.hypot(*(float((trainer.weights.masters[n].detach() - w).norm()) for n, w in mlp.items()))
    weights = math.hypot(*(float(w.norm()) for w in mlp.values()))
    row = trainer.watch.figures(trainer.optimizers.optimizers)
    assert row["update_ratio/mlp"] == pytest.approx(change / weights, rel=1e-4)


def test_a_large_group_is_known_well_from_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that change much more than others, and a number of columns that the step would divide."""
    monkeypatch.setattr(watch_module, "POSITIONS", 4000)
    g = torch.Generator().manual_seed(1)
    masters = {"layers.0.mlp.a": torch.randn(1000, 256, generator=g), "layers.0.mlp.b": torch.randn(64, generator=g)}
    watch = Watch(masters)
    assert all(math.gcd(stride, 256) == 1 for stride in [watch._strides["layers.0.mlp.a"]])
    watch.before_update()
    before = masters["layers.0.mlp.a"].clone()
    masters["layers.0.mlp.a"] += torch.randn(1000, 256, generator=g) * torch.linspace(0, 0.02, 256)
    watch.after_update()
    exact = float((masters["layers.0.mlp.a"] - before).norm() / before.norm())
    assert watch.figures([])["update_ratio/mlp"] == pytest.approx(exact, rel=0.05)


def test_the_share_of_changed_weights_counts_what_bf16_keeps() -> None:
    """Pitfall 29: a change that bf16 cannot hold is none."""
    masters = {"embed_tokens.weight": torch.ones(30, 10), "layers.0.mlp.a": torch.ones(10, 10)}
    watch = Watch(masters)
    assert watch.changed() == {"changed_share": 0.0}
    masters["embed_tokens.weight"] += 1e-5  # lost in bf16
    assert watch.changed() == {"changed_share": 0.0}
    masters["layers.0.mlp.a"][:, :5] += 0.1
    assert watch.changed() == {"changed_share": pytest.approx(50 / 400)}


def test_the_share_is_of_the_stages_start_also_after_it_was_continued(make_trainer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    make_trainer(steps=3, folder=tmp_path / "run").fit()
    longer = make_trainer(steps=4, folder=tmp_path / "run")
    assert longer.fit().resumed_from == 3
    whole = make_trainer(steps=4, folder=tmp_path / "whole")
    whole.fit()
    shares = [read_metrics(t.metrics.path)[-1]["changed_share"] for t in (longer, whole)]
    assert shares[0] > 0.5 and shares[0] == pytest.approx(shares[1], abs=0.05)


def test_between_logging_steps_no_weight_is_read(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(steps=6, log_every=3)
    steps: list[int] = []
    sample = trainer.watch._sample
    monkeypatch.setattr(trainer.watch, "_sample", lambda: steps.append(trainer.state.step) or sample())
    trainer.fit()
    # before and after the update, and once for the share of changed weights
    assert steps == [2, 2, 3, 5, 5, 6]


def test_time_waited_and_mfu_are_of_the_steps_since_the_last_row() -> None:
    """Pitfall 31: a mean over the window, and no figure where the peak is not known."""
    masters = {"norm.weight": torch.ones(4)}
    for peak, expected in ((1000.0, 0.4), (None, None)):
        watch = Watch(masters, work=Work(flops_per_token=2.0, peak=peak))
        for _ in range(4):
            watch.batch(0.05, tokens=100)
            watch.step(0.5)
        row: dict[str, Any] = watch.figures([])
        assert (row["data_wait"], row["step_ms"], row["mfu"]) == (0.1, 500.0, expected)
        assert "step_ms" not in watch.figures([]), "nothing since the last row"


def test_a_slow_loader_shows_as_data_wait(make_trainer) -> None:
    import time

    trainer = make_trainer(steps=4)
    quick = trainer.loader.batch

    def slow(step: int, *rest: int) -> Any:
        time.sleep(0.1)
        return quick(step, *rest)

    trainer.loader.batch = slow
    trainer.fit()
    assert read_metrics(trainer.metrics.path)[-1]["data_wait"] > 0.5


def test_what_steers_experts_is_in_no_group() -> None:
    masters = {"layers.0.mlp.expert_bias": torch.ones(4), "norm.weight": torch.ones(4)}
    assert Watch(masters, steering=["layers.0.mlp.expert_bias"]).groups == {"scalars": ["norm.weight"]}


def test_a_sampler_may_say_whether_its_text_came_to_an_end(make_trainer) -> None:
    samples = ["a text", {"sample": "another", "ended": False}]
    trainer = make_trainer(steps=1, sampler=lambda model, step: samples)
    trainer.fit()
    rows = [row for row in read_metrics(trainer.metrics.path) if "sample" in row]
    assert [(row["sample"], row.get("ended")) for row in rows] == [("a text", None), ("another", False)]
