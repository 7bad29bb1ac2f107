"""What bf16 computes in another way on CPU equals float32 within the rounding of bf16: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.model.attention import attend, document_mask
from sproutlm.model.block_attention import KEPT
from sproutlm.model.layers import RMSNorm

# One rounding to bf16 (8 significant bits) is off by at most 2 ** -8 of the value; a few of them follow each other here.
ROUNDING = 2.0**-8


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, expected: Tensor) -> float:
    """Length of the difference, in lengths of what was expected."""
    return ((got.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(2, 7, 64), (3, 5, 2, 16)])
def test_rms_norm_has_the_values_and_gradients_of_float32(shape: tuple[int, ...]) -> None:
    low = RMSNorm(shape[-1], 1e-6).bfloat16()
    with torch.no_grad():
        low.weight.copy_(1 + 0.3 * random(shape[-1], seed=1))
    x = (3 * random(*shape, seed=2)).bfloat16().requires_grad_()
    grad = random(*shape, seed=3).bfloat16()
    out = low(x)
    assert out.dtype == torch.bfloat16
    got = torch.autograd.grad(out, (x, low.weight), grad)

    exact_x, exact_weight = (t.detach().float().requires_grad_() for t in (x, low.weight))
    expected = F.rms_norm(exact_x, (shape[-1],), exact_weight, 1e-6)
    exact = torch.autograd.grad(expected, (exact_x, exact_weight), grad.float())
    torch.testing.assert_close(out.float(), expected.detach(), rtol=3 * ROUNDING, atol=0)
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == torch.bfloat16 and error(a, b) < 2 * ROUNDING


def test_rms_norm_of_zeros_and_of_large_values_is_finite() -> None:
    """``eps`` alone keeps a row of zeros from a division by zero; the squares of 1e15 still fit float32."""
    norm = RMSNorm(16, 1e-6).bfloat16()
    for value in (0.0, 1e15):
        x = torch.full((2, 16), value, dtype=torch.bfloat16, requires_grad=True)
        out = norm(x)
        out.sum().backward()
        assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("seq", [24, 128, 300, KEPT + 40])
def test_blocks_attend_as_float32_does(seq: int, kv_heads: int, documents: bool) -> None:
    """Grouped queries, packed documents and padding, one block and several, probabilities kept and computed again."""
    batch, heads, head_dim = 2, 4, 16
    q, k, v = (
        random(batch, n, seq, head_dim, seed=i).bfloat16().requires_grad_()
        for i, n in enumerate((heads, kv_heads, kv_heads))
    )
    mask = None
    if documents:
        rest = seq - 17
        ids = torch.tensor([[0] * 9 + [1] * (seq - 9), [0] * 3 + [1] * 14 + [-1] * rest])
        seen = document_mask(ids)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
    grad = random(batch, heads, seq, head_dim, seed=9).bfloat16()
    out = attend(q, k, v, None if mask is None else mask.bfloat16(), causal=mask is None)
    assert out.dtype == torch.bfloat16 and out.shape == (batch, heads, seq, head_dim)
    got = torch.autograd.grad(out, (q, k, v), grad)

    exact = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = F.scaled_dot_product_attention(
        *exact, attn_mask=mask, is_causal=mask is None, enable_gqa=kv_heads != heads
    )
    assert error(out.detach(), expected.detach()) < 2 * ROUNDING
    for name, a, b in zip("qkv", got, torch.autograd.grad(expected, exact, grad.float()), strict=True):
        assert a.dtype == torch.bfloat16 and a.isfinite().all() and error(a, b) < 4 * ROUNDING, name


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_blocks_go_on_from_keys_already_seen(kv_heads: int) -> None:
    """A prompt read in two parts: the second part's queries stand after the keys of the first."""
    q, k, v = (random(1, n, 200, 16, seed=i).bfloat16() for i, n in enumerate((4, kv_heads, kv_heads)))
    whole = attend(q, k, v, None, causal=True)
    mask = torch.full((160, 200), float("-inf"), dtype=torch.bfloat16).triu(41)[None, None]
    assert error(attend(q[:, :, 40:], k, v, mask, causal=False), whole[:, :, 40:]) < ROUNDING


class Results(TorchDispatchMode):
    """Records every operator with the types and shapes of the tensors it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = out if isinstance(out, tuple | list) else (out,)
        self.seen += [(func.name(), t.dtype, t.shape) for t in given if isinstance(t, Tensor)]
        return out


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seq", [40, 300, KEPT + 1])
def test_scores_are_never_a_float32_square(seq: int, training: bool, documents: bool) -> None:
    """pitfall 21: nor a bf16 one where the row has more than one block."""
    config = ModelConfig(vocab_size=61, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=1024)
    model = Transformer(config).init_weights(1).bfloat16()
    tokens = torch.randint(0, 61, (2, seq), generator=torch.Generator().manual_seed(seq))
    ids = (torch.arange(seq) // 30).expand(2, seq) if documents else None
    with torch.set_grad_enabled(training), Results() as results:
        logits = model(tokens, document_ids=ids)
        if training:
            logits.float().logsumexp(-1).sum().backward()
    squares = {(name, dtype, shape[0]) for name, dtype, shape in results.seen if shape[-2:] == (seq, seq)}
    assert not [name for name, dtype, _ in squares if dtype == torch.float32]
    scores = [shape for name, _, shape in results.seen if "bmm" in name or "softmax" in name]
    assert scores and max(shape[-2] for shape in scores if shape[-1] == seq) <= 2 * 128, "128 queries, two heads"
