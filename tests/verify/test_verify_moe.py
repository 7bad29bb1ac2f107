"""``sprout verify moe``: all of it holds, and each check notices the fault it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.cli import main
from sproutlm.model import expert_loop, moe as layer
from sproutlm.train import optim
from sproutlm.verify import moe


def test_every_promise_holds_and_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "moe", "--json", str(tmp_path / "moe.json")]) == 0
    report = json.loads((tmp_path / "moe.json").read_text())
    assert len(report["checks"]) == len(moe.CHECKS) == capsys.readouterr().out.count("  ok    ")


def test_a_weight_divided_by_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """pitfall 20"""
    monkeypatch.setattr(layer.MoE, "_weights", lambda self, scores: scores / scores.sum(-1, keepdim=True))
    assert not moe.router_gradient(1, True).ok
    assert moe.router_gradient(2, True).ok


def test_rows_that_reach_the_wrong_expert_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = layer.grouped_loop
    monkeypatch.setattr(moe, "grouped_loop", lambda x, weight, ends: loop(x, weight.flip(0), ends))
    assert not moe.grouped_is_loop(torch.float32).ok
    one_by_one = layer.expert_loop
    monkeypatch.setattr(
        layer, "expert_loop", lambda x, w, tokens, ends, *m: one_by_one(x, w, tokens, ends, *(k.flip(0) for k in m))
    )
    assert not moe.layer_is_its_definition().ok
    assert not moe.one_by_one_is_products(torch.float32).ok


@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 4], ids=["x", "weights", "gate", "up", "down"])
def test_a_wrong_gradient_of_the_expert_loop_is_noticed(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    function = expert_loop._ExpertLoop
    right = function.backward

    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = list(right(ctx, *grad_outputs))
        place = [0, 1, 4, 5, 6][wrong]
        grads[place] = grads[place] * 1.1
        return tuple(grads)

    monkeypatch.setattr(function, "backward", staticmethod(backward))
    assert not moe.one_by_one_is_products(torch.float32).ok


@pytest.mark.parametrize("balance", ["aux", "bias"])
def test_balancing_that_does_nothing_or_pushes_the_wrong_way_is_noticed(
    balance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe, "BALANCE_STEPS", 40)
    if balance == "bias":

        @torch.no_grad()
        def wrong_way(self: Any, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad.sign(), alpha=group["lr"])

        monkeypatch.setattr(optim.SignDescent, "step", wrong_way)
    else:
        note = layer.MoE._note

        def without_gradient(self: Any, routing: Any, logits: Any, scores: Any, chosen: Any) -> None:
            note(self, routing, logits, scores.detach(), chosen)

        monkeypatch.setattr(layer.MoE, "_note", without_gradient)
    assert not moe.becomes_even(balance).ok
