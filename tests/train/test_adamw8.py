"""AdamW with averages of a byte: as good as torch's, exactly resumed, and what is stored is what was meant."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from sproutlm.config.schema import OptimizerConfig
from sproutlm.errors import Interrupted
from sproutlm.train import adamw8
from sproutlm.train.adamw8 import BLOCK, FIRST, SECOND, SLICE, AdamW8, Codes, state_bytes
from sproutlm.train.optim import Optimizers

HOW: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-10}


def spread(codes: Codes) -> Tensor:
    """Values of a block over three orders of magnitude, with a 0 in each."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, BLOCK, generator=g) * torch.logspace(-3, 0, BLOCK)
    x[:, 7] = 0
    return x if codes is FIRST else x.square()


@pytest.mark.parametrize("codes", [FIRST, SECOND], ids=["signed", "squares"])
def test_a_byte_is_one_of_the_two_neighbours_and_right_on_average(codes: Codes) -> None:
    x = spread(codes)
    reach = x.abs() >= x.abs().amax(1, keepdim=True) * 2**-codes.octaves
    total, draws = torch.zeros_like(x), 300
    g = torch.Generator().manual_seed(1)
    for _ in range(draws):
        stored, scale = codes.encode(x, torch.rand(x.shape, generator=g))
        assert stored.dtype == codes.dtype and stored.element_size() == 1
        found = codes.decode(stored, scale)
        assert ((found / x)[reach & (x != 0)].log2().abs() <= codes.step * 1.001).all()
        assert (found[x == 0] == 0).all()
        total += found
    off = (total / draws / x)[reach & (x != 0)] - 1
    assert abs(off.mean().item()) < 1e-3 and off.abs().max() < 0.03


def test_a_square_is_never_stored_as_nothing_and_a_small_mean_is_kept_on_average() -> None:
    x = torch.full((1, BLOCK), 1e-12)
    x[0, 0] = 1.0
    stored, scale = SECOND.encode(x, torch.full_like(x, 0.999))
    assert (stored > 0).all() and (SECOND.decode(stored, scale) >= x * 0.999).all()
    g = torch.Generator().manual_seed(2)
    small = torch.full((400, BLOCK), 2.0**-18)
    small[:, 0] = 1.0
    found = FIRST.decode(*FIRST.encode(small, torch.rand(small.shape, generator=g)))[:, 1:]
    assert set(found.unique().tolist()) == {0.0, 2.0**-16} and found.mean().item() == pytest.approx(2.0**-18, rel=0.05)


def quadratic(optimizer: type, steps: int = 300) -> tuple[float, Tensor]:
    """Noisy least squares with 40 x 128 weights whose scales differ a hundredfold; the last mean loss, without noise."""
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(40, 128, generator=g) * 0.2
    inputs = torch.randn(64, 128, generator=g) * torch.logspace(-2, 0, 128)
    weight = torch.nn.Parameter(torch.zeros(40, 128))
    how = {"fused": True} if optimizer is torch.optim.AdamW else {}
    found = optimizer([{"params": [weight], "weight_decay": 0.01}], **HOW, **how)
    for step in range(steps):
        for group in found.param_groups:
            group["lr"] = HOW["lr"] * (1 - step / steps)
        rows = torch.randint(0, 64, (16,), generator=g)
        target = inputs[rows] @ truth.T + torch.randn(16, 40, generator=g) * 0.1
        weight.grad = (2 / 16) * (inputs[rows] @ weight.detach().T - target).T @ inputs[rows]
        found.step()
    return (inputs @ (weight.detach() - truth).T).square().mean().item(), weight.detach()


def test_after_300_steps_the_loss_is_within_a_tenth_of_float32s() -> None:
    """And far from where it began, so that the tolerance says something."""
    start = quadratic(torch.optim.AdamW, 1)[0]
    (plain, expected), (small, found) = quadratic(torch.optim.AdamW), quadratic(AdamW8)
    assert plain < 0.05 * start and abs(small / plain - 1) < 0.1
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_the_first_step_is_adamws() -> None:
    """Nothing was rounded yet; with a length that fills neither its last block nor its last slice."""
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(SLICE + 3 * BLOCK + 5, generator=g)
    pair = [torch.nn.Parameter(weights.clone()) for _ in range(2)]
    pair[0].grad = pair[1].grad = torch.randn(weights.shape, generator=g)
    AdamW8([pair[0]], **HOW).step()
    torch.optim.AdamW([pair[1]], weight_decay=0.0, **HOW).step()
    torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=1e-6)


def test_what_is_stored_takes_the_bytes_that_are_planned() -> None:
    weight = torch.nn.Parameter(torch.zeros(100, 77))
    weight.grad = torch.ones_like(weight)
    optimizer = AdamW8([weight], **HOW)
    optimizer.step()
    held = sum(tensor.nbytes for name, tensor in optimizer.state[weight].items() if name != "step")
    assert held == state_bytes(7700) < 0.27 * 8 * 7700


def masters() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {"layers.0.a.weight": torch.randn(70, 64, generator=g), "norm.weight": torch.ones(64)}


def steps(optimizers: Optimizers, first: int, last: int) -> None:
    for step in range(first, last):
        g = torch.Generator().manual_seed(step)
        for master in optimizers.masters.values():
            master.grad = torch.randn(master.shape, generator=g)
        optimizers.step(1.0, 0.5)


def test_a_stored_state_goes_on_to_the_bit_and_another_kinds_is_refused() -> None:
    config = OptimizerConfig(name="adamw", state_dtype="int8")
    whole = Optimizers(config, masters(), torch.float32)
    assert [type(o).__name__ for o in whole.optimizers] == ["AdamW", "AdamW8"]  # the vector's is float32
    steps(whole, 0, 3)
    again = Optimizers(config, {n: m.clone() for n, m in whole.masters.items()}, torch.float32)
    again.load_tensors(load(save(whole.tensors())))
    for optimizers in (whole, again):
        steps(optimizers, 3, 6)
    assert all(torch.equal(whole.masters[n], m) for n, m in again.masters.items())
    plain = Optimizers(OptimizerConfig(name="adamw"), masters(), torch.float32)
    with pytest.raises(ValueError, match="AdamW here needs"):
        plain.load_tensors(whole.tensors())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_that_is_continued_is_that_which_never_stopped(
    make_trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setattr(adamw8, "LEAST", 256)
    config = OptimizerConfig(name=name, state_dtype="int8")
    whole = make_trainer(folder=tmp_path / "whole", optimizer=config)
    assert any(isinstance(o, AdamW8) for o in whole.optimizers.optimizers)
    whole.fit()
    cut = make_trainer(folder=tmp_path / "cut", optimizer=config)
    inner = cut.train_step

    def stopped_in_the_third(step: int) -> Any:
        cut.stop.number = signal.SIGTERM if step == 2 else 0
        return inner(step)

    cut.train_step = stopped_in_the_third  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        cut.fit()
    again = make_trainer(folder=tmp_path / "cut", optimizer=config)
    assert again.fit().resumed_from == 3
    assert all(torch.equal(whole.weights.masters[n], m) for n, m in again.weights.masters.items())
