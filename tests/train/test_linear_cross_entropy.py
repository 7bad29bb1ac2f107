"""The chunked linear cross-entropy against ``torch.nn.functional.cross_entropy`` over full logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sproutlm.train.loss import IGNORE, cross_entropy_sum, cross_entropy_with_z, token_nll


def case(
    dtype: torch.dtype, batch: int = 3, seq: int = 11, dim: int = 8, vocab: int = 37
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, output weight and targets, a third of them left out."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, seq, dim, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, dim, generator=g) * 0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (batch, seq), generator=g)
    targets[torch.rand(batch, seq, generator=g) < 1 / 3] = IGNORE
    return hidden, weight, targets


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by torch's own operations, in float64."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = h @ w.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (h, w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 7, 33, 1024])
def test_chunked_loss_and_gradients_equal_full_cross_entropy(dtype: torch.dtype, chunk: int) -> None:
    hidden, weight, targets = case(dtype)
    loss = cross_entropy_sum(hidden, weight, targets, chunk=chunk)
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    expected, expected_hidden, expected_weight = reference(hidden, weight, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_hidden.double(), expected_hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(grad_weight.double(), expected_weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_capped_logits_have_the_loss_and_gradients_of_the_whole(chunk: int) -> None:
    hidden, weight, targets = case(torch.float64)
    loss = cross_entropy_sum(hidden, weight, targets, chunk=chunk, softcap=1.5)
    expected = reference(hidden, weight, targets, softcap=1.5)
    for found, wanted in zip((loss, *torch.autograd.grad(loss, (hidden, weight))), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    each = token_nll(hidden, weight, targets, chunk=chunk, softcap=1.5)
    torch.testing.assert_close(each.sum().double(), expected[0], rtol=1e-6, atol=0)
    assert (loss - cross_entropy_sum(hidden, weight, targets)).abs() > 0.1


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("chunk", [1, 7, 33, 1024])
@pytest.mark.parametrize("z_loss", [1e-4, 0.3])
def test_z_loss_is_in_the_gradient_and_not_in_the_sum(z_loss: float, chunk: int, softcap: float) -> None:
    """Against torch's own gradient of sum(loss + z * log(Z)^2) over full logits in float64 (arXiv:2204.02311)."""
    hidden, weight, targets = case(torch.float64)
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = h @ w.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    squares = logits.logsumexp(-1).square()[targets != IGNORE].sum()
    plain = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected = torch.autograd.grad(plain + z_loss * squares, (h, w))

    loss, found = cross_entropy_with_z(hidden, weight, targets, chunk=chunk, softcap=softcap, z_loss=z_loss)
    torch.testing.assert_close(loss.double(), plain.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.double(), squares.detach(), rtol=1e-6, atol=0)
    assert loss.requires_grad and not found.requires_grad
    for got, want in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=2e-6)
        assert (got - reference(hidden, weight, targets, softcap)[1 if want is expected[0] else 2]).abs().max() > z_loss


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(0, 9), chunk=st.integers(1, 12), vocab=st.integers(2, 9))
def test_any_chunk_size_gives_the_same_loss(tokens: int, chunk: int, vocab: int) -> None:
    hidden, weight, targets = case(torch.float32, 1, tokens, 4, vocab)
    expected, _, expected_weight = reference(hidden, weight, targets)
    loss = cross_entropy_sum(hidden, weight, targets, chunk=chunk)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)
    (grad,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(grad.double(), expected_weight, rtol=1e-6, atol=1e-6)


def test_gradient_is_scaled_by_what_follows_the_loss() -> None:
    hidden, weight, targets = case(torch.float32)
    (plain,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets), weight)
    (scaled,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets) * 0.25, weight)
    torch.testing.assert_close(scaled, plain * 0.25)


def test_targets_left_out_give_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = case(torch.float32)
    (grad,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets, chunk=4), hidden)
    left_out = targets == IGNORE
    assert left_out.any() and (grad[left_out] == 0).all() and (grad[~left_out] != 0).any(-1).all()


def test_all_targets_left_out_give_zero_and_no_nan() -> None:
    """Pitfall 23, at the loss: a sum over nothing is 0, its gradients too."""
    hidden, weight, targets = case(torch.float32)
    loss = cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE))
    assert loss.item() == 0.0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_bf16_loss_is_close_to_float64() -> None:
    """bf16 keeps 8 bits: logits are off by up to 0.4 %, the sum over tokens by less; gradients by 1 % of their size."""
    hidden, weight, targets = case(torch.bfloat16, batch=8, seq=32, dim=32, vocab=101)
    loss = cross_entropy_sum(hidden, weight, targets, chunk=50)
    assert loss.dtype == torch.float32  # a bf16 sum of hundreds of tokens would lose the small ones
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    expected, expected_hidden, expected_weight = reference(hidden, weight, targets)
    assert abs(loss.item() / expected.item() - 1) < 2e-3
    for got, want in ((grad_hidden, expected_hidden), (grad_weight, expected_weight)):
        assert (got.double() - want).norm() / want.norm() < 1e-2


class Shapes(TorchDispatchMode):
    """Records the number of elements of every tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


def test_full_logits_never_exist() -> None:
    """Neither forward nor backward makes a tensor of (tokens, vocabulary); torch's own way does, so the check can see it."""
    tokens, dim, vocab, chunk = 64, 4, 50, 8
    hidden, weight, targets = case(torch.float32, 1, tokens, dim, vocab)
    with Shapes() as seen:
        cross_entropy_sum(hidden, weight, targets, chunk=chunk).backward()
    assert seen.largest <= chunk * vocab
    with Shapes() as seen, torch.no_grad():
        token_nll(hidden, weight, targets, chunk=chunk)
    assert seen.largest <= chunk * vocab
    with Shapes() as seen:
        F.cross_entropy((hidden @ weight.T)[0], targets[0], ignore_index=IGNORE).backward()
    assert seen.largest == tokens * vocab


def test_token_nll_is_the_loss_of_each_target() -> None:
    hidden, weight, targets = case(torch.float32)
    each = token_nll(hidden, weight, targets, chunk=5)
    logits = hidden.detach() @ weight.detach().T
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(each, expected.view(targets.shape), rtol=1e-6, atol=1e-6)
    assert (each[targets == IGNORE] == 0).all() and not each.requires_grad


def sure_of_id_0(dtype: torch.dtype, scale: float, told: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of ``scale`` times it where every other id has a probability of about 1e-7."""
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 16, generator=g) * 0.1).half()
    weight[0] = 1.0
    hidden = torch.ones(1, 6, 16).half()
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    loss = cross_entropy_sum(hidden, weight, torch.zeros(1, 6, dtype=torch.int64), chunk=4, scale=told)
    return loss.detach(), list(torch.autograd.grad(loss * scale, [hidden, weight]))


def test_whatever_scale_it_is_told_the_gradient_is_that_of_the_loss() -> None:
    plain, expected = sure_of_id_0(torch.float32, 1.0, 1.0)
    for told in (1024.0, 16.0):
        loss, found = sure_of_id_0(torch.float32, 1024.0, told)
        assert torch.equal(loss, plain)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one * 1024, other)  # a power of two rounds nothing


def test_in_fp16_small_gradients_are_kept_by_the_scale_that_is_told() -> None:
    """1e-7 has no more than one digit in fp16: made 4,096 times as large before it is rounded it has three."""
    scale = 4096.0
    rows = [sure_of_id_0(torch.float32, scale, 1.0)[1][1][1:]]  # of the weight, without id 0
    rows += [sure_of_id_0(torch.float16, scale, told)[1][1][1:].float() for told in (1.0, scale)]
    late, early = (((row - rows[0]).norm() / rows[0].norm()).item() for row in rows[1:])
    assert early < 0.01 and late > 0.1
