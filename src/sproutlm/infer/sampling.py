"""The one sampler: logits to the next token of each row. No row ever looks at another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SproutError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one answer is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.temperature < math.inf:
            faults.append(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            faults.append(f"top_k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 <= self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; expected a share from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            faults.append(f"repetition_penalty is {self.repetition_penalty}; expected more than 0 (1 = none)")
        if self.max_tokens < 1:
            faults.append(f"max_tokens is {self.max_tokens}; expected 1 or more")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            faults.append(f"seed is {self.seed}; expected 0 to 2^63 - 1")
        if faults:
            raise SproutError("; ".join(faults))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def generator(self) -> torch.Generator:
        """The random stream of one request. Always on the CPU, so that a seed means the same on every device."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    *,
    seen: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    forbidden: Tensor | None = None,
) -> Tensor:
    """The next token of each row, (batch,) int64.

    Shapes: logits (batch, vocab); seen (batch, vocab) bool, true where the row's prompt or answer holds the token (read
    only where a row has a repetition penalty); generators one per row (not needed where all rows are greedy);
    forbidden (batch or 1, vocab) bool, tokens never to be drawn. SproutError where the logits are not finite.
    """
    logits = logits.float()
    if seen is not None and any(p.repetition_penalty != 1 for p in params):
        logits = penalise(logits, seen, _column([p.repetition_penalty for p in params], logits))
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -math.inf)
    best, tokens = logits.max(dim=-1)  # (batch,) each; a NaN anywhere in a row is its maximum
    if not bool(torch.isfinite(best).all()):
        raise SproutError(
            "the model's logits are not finite numbers, so no token can be drawn; its weights are damaged or its "
            "training diverged: use an earlier checkpoint, or look at metrics.jsonl for the step where the loss broke"
        )
    drawn = [row for row, p in enumerate(params) if not p.greedy]
    if drawn:
        if generators is None:
            raise ValueError("sampling needs one generator per row")
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _draw(logits[rows], [params[row] for row in drawn], [generators[row] for row in drawn])
    return tokens


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make seen tokens less likely (Keskar et al. 2019, arXiv:1909.05858): positive logits are divided by ``penalty``
    (batch, 1), negative ones multiplied, so that both go down (dividing a negative one would raise it)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def restrict(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to -inf all but each row's ``top_k`` likeliest tokens, and of those all but the likeliest that together reach
    the share ``top_p`` (Holtzman et al. 2020). Both (rows, 1); at least one token stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(rank >= top_k, -math.inf)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the share of all likelier tokens
    # The cumulative sum can miss 1 by a rounding error: a top_p of 1 is asked for by itself.
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1) & (rank > 0), -math.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _draw(logits: Tensor, params: list[SamplingParams], generators: list[torch.Generator]) -> Tensor:
    """One draw per row by inverting the cumulative distribution at a uniform number of the row's own stream."""
    vocabulary = logits.shape[-1]
    # Relative to the maximum, a tiny temperature gives -inf for the others and never inf - inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / _column([p.temperature for p in params], logits)
    narrow = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1]
    if narrow:
        rows = torch.tensor(narrow, device=logits.device)
        top_k = _column([params[row].top_k or vocabulary for row in narrow], logits)
        top_p = _column([params[row].top_p for row in narrow], logits)
        logits[rows] = restrict(logits[rows], top_k, top_p)
    # float64: a float32 sum over a large vocabulary loses the rarest tokens.
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    total = cumulative[:, -1]
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    # float32, as the logits: a float64 column would turn them all into float64.
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
