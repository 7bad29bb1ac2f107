"""A model beside itself: what packing, a cache, padding, the order of construction must not change."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import KVCache, Transformer
from ..model.init import init_weights, starts_at_zero
from .cases import VOCAB, Case
from .measure import Measure, at_most, close, none_of, worst
from .tiny import packed, random_model, random_tokens

# How far logits of size about 1 may be from those of another order of the same sums.
BATCHED = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


@torch.no_grad()
def identity(case: Case) -> Measure:
    """pitfall 16: a block whose branches write nothing hands on what it was given; with its weights it does not."""
    model, seen = random_model(case), list[tuple[Tensor, Tensor]]()
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(random_tokens(2, 7))
    if min((after - before).abs().mean().item() for before, after in seen) < 1e-3:
        return none_of(["a block with random weights changes nothing"])
    seen.clear()
    for name, parameter in model.named_parameters():
        if ".o_proj." in name or ".down_proj." in name:
            parameter.zero_()
    model(random_tokens(2, 7))
    return worst(close(after, before, atol=0.0) for before, after in seen)


@torch.no_grad()
def packed_is_alone(case: Case) -> Measure:
    """pitfall 11: documents that share a row give the logits, and to 1e-6 the loss, of documents alone."""
    model, lengths = random_model(case), [5, 1, 12, 3]
    tokens = random_tokens(1, sum(lengths))
    together = model(tokens, *packed(lengths))[0]
    alone = torch.cat([model(document)[0] for document in tokens.split(lengths, dim=1)])
    # In float64: at a loss of 4 one float32 step is 4.8e-7 already.
    losses = [F.cross_entropy(logits.double(), tokens[0].roll(-1)).item() for logits in (together, alone)]
    if (model(tokens)[0] - alone).abs().max() < 1e-3:
        return none_of(["packing without a mask makes no difference: nothing is compared"])
    return worst((close(together, alone, atol=1e-5, rtol=1e-5), at_most(abs(losses[0] - losses[1]), 1e-6, "loss")))


@torch.no_grad()
def documents_apart(case: Case) -> Measure:
    """pitfall 11: another text in one document changes nothing in its neighbours, before it and behind it.

    Bit for bit without experts; with them another number of rows per expert may order a sum otherwise.
    """
    model, lengths = random_model(case), [6, 8, 4]
    tokens = random_tokens(1, sum(lengths))
    positions, ids = packed(lengths)
    before = model(tokens, positions, ids)
    found = []
    for document in range(len(lengths)):
        inside = ids == document
        changed = torch.where(inside, (tokens + 7) % VOCAB, tokens)
        after = model(changed, positions, ids)
        if torch.equal(after[inside], before[inside]):
            return none_of(["a document's own logits did not change"])
        found.append(close(after[~inside], before[~inside], atol=0.0 if case.config().moe is None else 5e-6))
    return worst(found)


@torch.no_grad()
def cached_is_uncached(case: Case) -> Measure:
    """pitfall 19: a prompt at once, in pieces, or token by token, then one token at a time, equals one whole pass."""
    model, tokens = random_model(case), random_tokens(2, 15)
    expected = model(tokens)
    found = []
    for pieces in ([15], [9, 1, 1, 1, 1, 1, 1], [4, 3, 7, 1], [1] * 15):
        cache = KVCache(model.config, batch=2, max_len=16)
        logits = torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
        found.append(close(logits, expected, atol=1e-5, rtol=1e-5))
    return worst(found)


@torch.no_grad()
def batched_is_alone(case: Case, dtype: torch.dtype) -> Measure:
    """pitfall 19: left-padded prompts of several lengths and the tokens that follow them, beside each alone; never NaN."""
    exact = dtype == torch.float32
    model = random_model(case if exact else case.with_every_expert()).to(dtype)
    lengths, steps = [3, 11, 1, 6], 4
    rows = [random_tokens(1, n + steps, seed=n) for n in lengths]
    logits = _left_padded(model, rows, lengths, steps, dtype)
    if not exact and model.config.moe is not None:  # with the true number of experts, too, nothing is NaN
        chosen = _left_padded(random_model(case).to(dtype), rows, lengths, steps, dtype)
        if not chosen.isfinite().all():
            return none_of(["not finite"])
    if not logits.isfinite().all():  # the padding's own rows included
        return none_of(["not finite"])
    found = []
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone = model(row)[0]
        if alone.dtype != dtype:
            return none_of([f"logits in {alone.dtype}"])
        found.append(close(logits[b, max(lengths) - n :], alone, atol=BATCHED[dtype], rtol=1e-5 if exact else 0.0))
    return worst(found)


def _left_padded(model: Transformer, rows: list[Tensor], lengths: list[int], steps: int, dtype: torch.dtype) -> Tensor:
    """Logits of prompts (padded on the left) and of ``steps`` tokens behind each, (rows, width + steps, vocab)."""
    width = max(lengths)
    prompts = torch.full((len(rows), width), 7)  # whatever fills the padding must not matter
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        prompts[b, width - n :] = row[0, :n]
    cache = KVCache(model.config, len(rows), width + steps, dtype=dtype)
    cache.set_start(torch.tensor([width - n for n in lengths]))
    outputs = [model(prompts, cache=cache)]
    for step in range(steps):
        following = torch.stack([row[0, n + step] for row, n in zip(rows, lengths, strict=True)])
        outputs.append(model(following[:, None], cache=cache))
    return torch.cat(outputs, dim=1)


class Part:
    """Some of a model's parameters, in another order: what one of several devices would hold."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model, self.names = model, names

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        by_name = dict(self.model.named_parameters())
        return ((name, by_name[name]) for name in self.names)


@torch.no_grad()
def initial_weights(case: Case) -> Measure:
    """pitfalls 17 and 18: the first weights follow from seed and name alone: not from the order of construction, not
    from what else is on the device, not from the global random state, and a model built on meta computes the same."""
    config = case.config()
    whole = Transformer(config).init_weights(5).eval()
    names = [name for name, _ in whole.named_parameters()]
    torch_state = torch.random.get_rng_state()
    with torch.device("meta"):
        late = Transformer(config)
    late.to_empty(device="cpu").eval()
    for tensor in [*late.parameters(), *late.buffers()]:
        tensor.fill_(float("nan"))
    # Two devices, one after the other, each in the opposite order.
    for part in (names[1::2][::-1], names[::2][::-1]):
        init_weights(Part(late, part), 5)  # type: ignore[arg-type]
    faults = [n for n, p in late.named_parameters() if not torch.equal(p, whole.get_parameter(n))]
    tokens = random_tokens(1, 9)
    faults += ["logits"] if not torch.equal(late(tokens), whole(tokens)) else []
    faults += ["the global random state"] if not torch.equal(torch_state, torch.random.get_rng_state()) else []
    # pitfall 17: what is zero writes into the residual stream or weighs what does, and no other matrix is zero.
    for name, parameter in whole.named_parameters():
        writes = ".o_proj." in name or ".down_proj." in name or starts_at_zero(name)
        if parameter.dim() > 1 and writes != (parameter.count_nonzero() == 0):
            faults.append(f"{name} is {'not ' if writes else ''}zero at the start")
    if config.research:
        plain = Transformer(config.model_copy(update={"research": ()})).init_weights(5).eval()
        faults += [] if torch.equal(plain(tokens), whole(tokens)) else ["research parts change the untrained model"]
    return none_of(faults)


BATCHED_CHECKS = {dtype: partial(batched_is_alone, dtype=dtype) for dtype in BATCHED}
