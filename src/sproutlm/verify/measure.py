"""What one check found: a largest error beside its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """``error``: the largest absolute difference, or a count of faults; allowed is ``atol + rtol * |expected|``.

    ``note``: what a reader should know beside the figures, above all where it is not ``ok``.
    """

    error: float
    atol: float = 0.0
    rtol: float = 0.0
    ok: bool = True
    note: str = ""

    @property
    def share(self) -> float:
        """Of the tolerance that was used up, by which the worst of several is found."""
        return self.error / self.atol if self.atol else self.error


# A check that several shapes go through: what it promises, in words, and how it is measured.
Measured = Callable[..., Measure]


def close(got: Tensor, expected: Tensor, *, atol: float, rtol: float = 0.0) -> Measure:
    """Elementwise, as ``torch.testing.assert_close`` counts; NaN anywhere is an infinite error."""
    got, expected = got.detach().float(), expected.detach().float()
    if got.shape != expected.shape:
        return Measure(float("inf"), atol, rtol, False, f"shapes {tuple(got.shape)} and {tuple(expected.shape)}")
    difference = (got - expected).abs()
    if not bool(difference.isfinite().all()):
        return Measure(float("inf"), atol, rtol, False, "not finite")
    ok = bool((difference <= atol + rtol * expected.abs()).all())
    return Measure(difference.max().item(), atol, rtol, ok)


def at_most(error: float, limit: float, note: str = "") -> Measure:
    """A figure that must not exceed ``limit``."""
    return Measure(error, limit, ok=error <= limit, note=note)


def none_of(faults: Iterable[str]) -> Measure:
    """A list of faults that must be empty."""
    found = list(faults)
    return Measure(float(len(found)), ok=not found, note="; ".join(found[:3]))


def worst(measures: Iterable[Measure]) -> Measure:
    """The one that failed or, of those that are well, the one nearest to its tolerance."""
    return max(measures, key=lambda one: (not one.ok, one.share))
