"""Cached generation gives what one whole pass gives, alone or in a left-padded batch, and stays in its own type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sproutlm.config.model import ModelConfig
from sproutlm.model import KVCache, Transformer

VOCAB = 61
# How far logits of size about 3 may be from those of another order of the same sums.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.15}


def model_of(n_kv_heads: int, dtype: torch.dtype = torch.float32) -> Transformer:
    config = ModelConfig(vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, ffn_dim=48)
    model = Transformer(config).init_weights(1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        model.embed_tokens.weight.mul_(25)
    return model.to(dtype)


def tokens(batch: int, seq: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seq))


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("pieces", [[9], [6, 1, 1, 1], [4, 3, 2], [1] * 9])
@torch.no_grad()
def test_cached_logits_equal_uncached_logits(n_kv_heads: int, pieces: list[int]) -> None:
    """pitfall 19: prompt at once, in pieces, or token by token."""
    model, x = model_of(n_kv_heads), tokens(2, 9)
    cache = KVCache(model.config, batch=2, max_len=12)
    logits = torch.cat([model(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
    assert cache.length == 9


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@torch.no_grad()
def test_left_padded_batch_equals_each_row_alone(dtype: torch.dtype) -> None:
    """pitfall 19: positions wrong with left padding; NaN where a padding row sees nothing. In every compute type."""
    model, lengths, steps = model_of(2, dtype), [3, 8, 1, 5], 3
    width = max(lengths)
    rows = [tokens(1, n + steps) for n in lengths]  # prompt and the tokens that follow it
    batch = torch.full((len(rows), width), 7)  # whatever fills the padding must not matter
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        batch[b, width - n :] = row[0, :n]

    cache = KVCache(model.config, len(rows), width + steps, dtype=dtype)
    cache.set_start(torch.tensor([width - n for n in lengths]))
    outputs = [model(batch, cache=cache)]
    assert outputs[0].isfinite().all()  # the padding rows too
    for step in range(steps):
        following = torch.stack([row[0, n + step] for row, n in zip(rows, lengths, strict=True)])[:, None]
        outputs.append(model(following, cache=cache))
    together = torch.cat(outputs, dim=1)  # (rows, width + steps, vocab)
    assert together.isfinite().all()

    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone = model(row)
        assert alone.dtype == dtype
        difference = (together[b, width - n :].float() - alone[0].float()).abs().max().item()
        assert difference <= TOLERANCE[dtype], f"row {b} of length {n}"


@torch.no_grad()
def test_padding_content_changes_nothing() -> None:
    """pitfall 19, bit for bit."""
    model, x = model_of(2), tokens(2, 6)
    logits = []
    for filler in (0, 33):
        x[0, :4] = filler
        cache = KVCache(model.config, 2, 6)
        cache.set_start(torch.tensor([4, 0]))
        logits.append(model(x, cache=cache))
    assert torch.equal(logits[0][0, 4:], logits[1][0, 4:])
    assert torch.equal(logits[0][1], logits[1][1])


def test_positions_and_mask_follow_from_each_rows_start() -> None:
    """pitfall 19: a row's first real token is at position 0, and every query sees a key (a softmax over none is NaN)."""
    cache = KVCache(model_of(2).config, 2, 6)
    cache.set_start(torch.tensor([2, 0]))
    assert cache.positions(4).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    mask = cache.mask(4)
    assert mask is not None and mask.any(-1).all()
    assert mask[0, 0, 2:].tolist() == [[False, False, True, False], [False, False, True, True]]
    assert torch.equal(mask[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())
    cache.advance(4)
    assert cache.positions(1).tolist() == [[2], [4]]


@torch.no_grad()
def test_rows_that_are_kept_go_on_as_before() -> None:
    """Finished requests leave the batch; the others must not notice, padded or not."""
    model, x = model_of(2), tokens(3, 6)
    whole, smaller = KVCache(model.config, 3, 10), KVCache(model.config, 3, 10)
    for cache in (whole, smaller):
        cache.set_start(torch.tensor([2, 0, 3]))
        model(x, cache=cache)
    smaller.keep(torch.tensor([2, 1]))
    following = tokens(3, 1)
    expected = model(following, cache=whole)
    torch.testing.assert_close(model(following[[2, 1]], cache=smaller), expected[[2, 1]], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_full_cache_is_an_error_not_an_overwrite() -> None:
    model = model_of(2)
    cache = KVCache(model.config, 1, 4)
    model(tokens(1, 4), cache=cache)
    with pytest.raises(ValueError, match="holds 4 tokens; 5 were asked for"):
        model(tokens(1, 1), cache=cache)


class Operations(TorchDispatchMode):
    """Records every operator with the types of its tensor arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [*args, *(kwargs or {}).values()]
        self.seen.append((func.name(), [a.dtype for a in arguments if isinstance(a, Tensor)]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["plain", "documents", "padded prompt", "padded step"])
@torch.no_grad()
def test_attention_never_falls_back_to_a_float32_softmax(case: str) -> None:
    """pitfall 21: padding, a cache or packed documents must leave the fused kernel, in the compute type, in use."""
    model, x = model_of(2, torch.bfloat16), tokens(2, 8)
    cache = KVCache(model.config, 2, 16, dtype=torch.bfloat16)
    cache.set_start(torch.tensor([3, 0]))
    if case == "padded step":
        model(x, cache=cache)
    with Operations() as operations:
        if case == "plain":
            model(x)
        elif case == "documents":
            model(x, document_ids=torch.tensor([[0] * 5 + [1] * 3] * 2))
        else:
            model(x if case == "padded prompt" else x[:, :1], cache=cache)
    names = [name for name, _ in operations.seen]
    fused = [types for name, types in operations.seen if "scaled_dot_product" in name]
    assert len(fused) == model.config.n_layers
    assert all(set(types) == {torch.bfloat16} for types in fused)  # queries, keys, values and the mask
    assert not [name for name in names if "softmax" in name or "bmm" in name]
