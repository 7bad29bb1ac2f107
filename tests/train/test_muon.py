"""Muon and its parts, on matrices whose right answer is known from their singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sproutlm.train.muon import Muon, orthogonalize, variance_shape

# Five Polar-Express steps bring every singular value of at least 0.1 % of the Frobenius norm this near to 1: 0.85 to
# 1.14 over 600 random matrices like those below, in float32.
TOLERANCE = 0.2


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)], ids=["tall", "wide", "square"])
def test_singular_values_become_one(shape: tuple[int, int]) -> None:
    x = matrix(*shape)
    x = x * torch.logspace(0, -1.5, shape[1])  # badly scaled columns: the values before span more than 30x
    out = orthogonalize(x[None], torch.float32)[0]
    values = torch.linalg.svdvals(out)
    assert out.shape == x.shape and out.dtype == torch.float32
    assert (values - 1).abs().max() < TOLERANCE, values
    assert torch.linalg.svdvals(x).max() / torch.linalg.svdvals(x).min() > 5, "the input was far from orthogonal"


def test_directions_are_kept() -> None:
    """The result is near U V^T of the input: not some other orthogonal matrix."""
    x = matrix(24, 12)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    out = orthogonalize(x[None], torch.float32)[0]
    assert torch.cosine_similarity(out.flatten(), (u @ vt).flatten(), dim=0) > 0.98


def test_a_batch_equals_its_matrices_one_by_one() -> None:
    stack = torch.stack([matrix(12, 20, seed) for seed in range(3)])
    together = orthogonalize(stack, torch.float32)
    alone = torch.cat([orthogonalize(m[None], torch.float32) for m in stack])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_matrices_updated_a_few_at_a_time_end_where_all_at_once_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working room is bounded, the update is not another one: 5 matrices, 2 at a time."""

    def trained() -> list[Tensor]:
        weights = [torch.nn.Parameter(matrix(8, 6, seed)) for seed in range(5)]
        optimizer = Muon(weights, lr=0.1)
        for step in range(3):
            for seed, weight in enumerate(weights):
                weight.grad = matrix(8, 6, 10 * step + seed)
            optimizer.step()
        return [weight.detach() for weight in weights]

    together = trained()
    monkeypatch.setattr("sproutlm.train.muon.STACK_ENTRIES", 2 * 8 * 6)
    taken = []
    whole = Muon._update
    monkeypatch.setattr(
        Muon, "_update", lambda self, params, group: (taken.append(len(params)), whole(self, params, group))
    )
    for one, other in zip(together, trained(), strict=True):
        torch.testing.assert_close(one, other)
    assert taken == [2, 2, 1] * 3


def test_bf16_iteration_is_near_the_float32_one() -> None:
    x = matrix(48, 32)
    low, full = orthogonalize(x[None], torch.bfloat16), orthogonalize(x[None], torch.float32)
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(low.flatten(), full.flatten(), dim=0) > 0.995


def test_a_zero_gradient_gives_a_zero_update() -> None:
    p = torch.nn.Parameter(matrix(6, 4))
    before = p.detach().clone()
    optimizer = Muon([p], lr=0.1)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("shape", [(40, 16), (16, 40), (24, 24)])
def test_first_update_points_where_torchs_muon_goes(shape: tuple[int, int]) -> None:
    """Against torch.optim.Muon (torch 2.11 to 2.13): another polynomial and no variance normalisation, one direction."""
    ours, theirs = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.zeros(shape))
    ours.grad = matrix(*shape)
    theirs.grad = ours.grad.clone()
    Muon([ours], lr=0.1, momentum=0.95).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0).step()
    assert torch.cosine_similarity(ours.detach().flatten(), theirs.detach().flatten(), dim=0) > 0.95


def test_update_has_the_size_that_the_rate_says() -> None:
    """Root-mean-square of an update: lr * sqrt(max(1, rows/cols)) / sqrt(longer side), whatever the gradient's size."""
    for rows, cols in ((64, 16), (16, 64)):
        sizes = []
        for scale in (1e-4, 1e4):
            p = torch.nn.Parameter(torch.zeros(rows, cols))
            p.grad = matrix(rows, cols) * scale
            Muon([p], lr=0.1).step()
            sizes.append(p.detach().square().mean().sqrt().item())
        expected = 0.1 * max(1.0, rows / cols) ** 0.5 / max(rows, cols) ** 0.5
        assert sizes == pytest.approx([expected, expected], rel=0.15)


def test_weight_decay_acts_only_where_update_and_weight_agree() -> None:
    """Cautious decay (arXiv:2510.12402): an entry that the update drives away from zero is not also pulled back."""
    start = matrix(8, 8, seed=1)
    results = {}
    for decay in (0.0, 0.5):
        p = torch.nn.Parameter(start.clone())
        p.grad = matrix(8, 8, seed=2)
        Muon([p], lr=0.1, weight_decay=decay).step()
        results[decay] = p.detach()
    update = start - results[0.0]  # what is subtracted
    agree = update * start > 0
    expected = torch.where(agree, results[0.0] - 0.1 * 0.5 * start, results[0.0])
    assert agree.any() and (~agree).any()
    torch.testing.assert_close(results[0.5], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_variance_normalisation_keeps_the_norm_and_evens_the_rows(shape: tuple[int, int]) -> None:
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = matrix(*shape)
    optimizer = Muon([p], lr=0.1)
    optimizer.step()
    optimizer.state[p]["variance"].zero_()
    update = matrix(*shape)[None] * torch.logspace(0, 1, max(shape)).view(
        (1, -1, 1) if shape[0] > shape[1] else (1, 1, -1)
    )
    normed = optimizer._normalise_variance(update, [p], beta2=0.95)
    torch.testing.assert_close(normed.norm(), update.norm())
    per_place = normed.square().mean(dim=-1 if shape[0] > shape[1] else -2).squeeze()
    assert per_place.max() / per_place.min() < 1.001, "each place of the longer side has the same size"
    assert variance_shape(p.shape) == tuple(optimizer.state[p]["variance"].shape)


@pytest.mark.parametrize("shape", [(7,), ()])
def test_only_matrices_are_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(shape))], lr=0.1)


def test_a_stack_of_experts_is_updated_as_its_matrices_would_be() -> None:
    stacked = torch.nn.Parameter(torch.stack([matrix(8, 12, seed) for seed in range(3)]))
    alone = [torch.nn.Parameter(matrix(8, 12, seed)) for seed in range(3)]
    optimizers = [Muon([stacked], lr=0.1, weight_decay=0.1), Muon(alone, lr=0.1, weight_decay=0.1)]
    for step in range(3):
        stacked.grad = torch.stack([matrix(8, 12, 10 * step + seed) for seed in range(3, 6)])
        for number, one in enumerate(alone):
            one.grad = stacked.grad[number].clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stacked.detach(), torch.stack([one.detach() for one in alone]))
    assert optimizers[0].state[stacked]["variance"].shape == (3, 1, 12)


def test_state_is_float32_and_a_step_without_gradient_changes_nothing() -> None:
    p, q = torch.nn.Parameter(matrix(4, 6)), torch.nn.Parameter(matrix(4, 6))
    before = q.detach().clone()
    optimizer = Muon([p, q], lr=0.1, compute=torch.bfloat16)
    p.grad = matrix(4, 6, 3)
    optimizer.step()
    assert torch.equal(q, before) and not optimizer.state[q]
    assert {t.dtype for t in optimizer.state[p].values()} == {torch.float32}
