"""What a run looks like from inside: figures by group of weights, use of the machine. Made at logging steps only.

Between logging steps this costs two additions and a list assignment. Changes of weights are read at fixed, evenly spread
positions, at most ``POSITIONS`` of each group, so that no second copy of the weights is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

POSITIONS = 65_536  # of each group's weights; the norm of a change is then known to about one in a hundred

# The groups, in the order in which they are shown, and how a parameter's name says that it is in one. The first that
# fits counts; vectors (norms, biases, gates) are "scalars" wherever they stand.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("embedding", ("embed_",)),
    ("attention", (".attention.",)),
    ("router", (".router.",)),
    ("mlp", (".mlp.",)),
    ("head", ("lm_head",)),
)
SCALARS, OTHER = "scalars", "other"


def group_of(name: str, ndim: int) -> str:
    """The group of a parameter."""
    if ndim < 2:
        return SCALARS
    return next((group for group, marks in GROUPS if any(mark in name for mark in marks)), OTHER)


@dataclass(frozen=True)
class Work:
    """What one token costs, and what the device can do. ``peak`` None: not known, and MFU is not given."""

    flops_per_token: float  # of training: forward and backward pass
    peak: float | None  # floating-point operations per second


def _six(value: float) -> float:
    """Six significant digits: what an estimate or a norm is good for."""
    return float(f"{value:.6g}")


class Watch:
    """Collects the figures of one run over its ``masters`` (float32, by name), made while they are the start's."""

    def __init__(self, masters: dict[str, Tensor], steering: Iterable[str] = (), work: Work | None = None) -> None:
        self.masters, self.work = masters, work
        self.device = next(iter(masters.values())).device
        left_out = set(steering)
        self.groups: dict[str, list[str]] = {}
        for name, master in masters.items():
            if name not in left_out:
                self.groups.setdefault(group_of(name, master.ndim), []).append(name)
        self._strides = {n: s for names in self.groups.values() for n, s in self._strides_of(names).items()}
        self._start = self._sample()
        self._before: dict[str, Tensor] | None = None
        self._ratios: dict[str, Tensor] = {}
        self._norms: tuple[Sequence[str], Sequence[Tensor]] = ((), ())
        self._gpu_use = self.device.type == "cuda"
        self._batch_seconds, self._batch_tokens = 0.0, 0
        self._clear()

    def _clear(self) -> None:
        self._seconds, self._waited, self._tokens, self._steps = 0.0, 0.0, 0, 0

    # --- told by the trainer ------------------------------------------------------------------------------------------

    def batch(self, seconds: float, tokens: int) -> None:
        """A step's batch of ``tokens`` came after a wait of ``seconds``."""
        self._batch_seconds, self._batch_tokens = seconds, tokens

    def gradients(self, names: Sequence[str], norms: Sequence[Tensor]) -> None:
        """The norm of each parameter's gradient, before clipping; looked at only in ``figures``."""
        self._norms = (names, norms)

    def before_update(self) -> None:
        """At a logging step, before the optimizers' step."""
        self._before = self._sample()

    def after_update(self) -> None:
        """At a logging step, after the optimizers' step."""
        if self._before is not None:
            after = self._sample()
            self._ratios = {
                group: torch.linalg.vector_norm(after[group] - before) / torch.linalg.vector_norm(before)
                for group, before in self._before.items()
            }
            self._before = None

    def step(self, seconds: float) -> None:
        """A whole step took ``seconds``, its wait for data included."""
        self._seconds += seconds
        self._waited += self._batch_seconds
        self._tokens += self._batch_tokens
        self._steps += 1

    # --- the row ------------------------------------------------------------------------------------------------------

    def figures(self, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Any]:
        """The figures since the last call: by group ``lr/``, ``grad_norm/``, ``update_ratio/``; ``changed_share`` since
        the start of the stage; ``step_ms``, ``data_wait`` (share), ``mfu`` (share, None = the peak is not known)."""
        row: dict[str, Any] = {}
        rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
        for group, names in self.groups.items():
            found = [rates[id(self.masters[name])] for name in names if id(self.masters[name]) in rates]
            if found:
                row[f"lr/{group}"] = float(max(found))
        row |= {f"grad_norm/{group}": _six(norm) for group, norm in self._group_norms().items()}
        ratios = {group: float(ratio) for group, ratio in self._ratios.items()}
        row |= {f"update_ratio/{group}": _six(ratio) for group, ratio in ratios.items() if math.isfinite(ratio)}
        self._ratios = {}
        return row | self.changed() | self._machine()

    def _group_norms(self) -> dict[str, float]:
        names, norms = self._norms
        self._norms = ((), ())
        if not names:
            return {}
        by_name = dict(zip(names, torch.stack([norm.float() for norm in norms]).tolist(), strict=True))
        return {
            group: math.sqrt(sum(by_name[name] ** 2 for name in members if name in by_name))
            for group, members in self.groups.items()
            if any(name in by_name for name in members)
        }

    def changed(self) -> dict[str, float]:
        """Share of the weights that differ from the start's, once both are rounded to bf16 (pitfall 29)."""
        now = self._sample()
        changed = total = 0.0
        for group, start in self._start.items():
            # A group with many weights is read at wider steps, and counts for as much more.
            size = sum(self.masters[name].numel() for name in self.groups[group])
            changed += size * float((now[group].bfloat16() != start.bfloat16()).float().mean())
            total += size
        return {"changed_share": _six(changed / total)}

    def _machine(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self._steps and self._seconds > 0:
            row["step_ms"] = round(1e3 * self._seconds / self._steps, 2)
            row["data_wait"] = round(self._waited / self._seconds, 4)
            if self.work is not None:
                done = self._tokens / self._seconds * self.work.flops_per_token
                row["mfu"] = round(done / self.work.peak, 4) if self.work.peak else None
        self._clear()
        if self.device.type == "cuda":
            row["cuda_memory_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
            if self._gpu_use:
                try:
                    row["gpu_use"] = torch.cuda.utilization(self.device) / 100
                except Exception:  # no NVML here, or no right to ask it: the figure is left out from now on
                    self._gpu_use = False
        return row

    # --- positions ----------------------------------------------------------------------------------------------------

    def _strides_of(self, names: list[str]) -> dict[str, int]:
        """Steps between the positions read of each tensor of a group: one width for all, so that each weight counts alike."""
        width = max(1, sum(self.masters[name].numel() for name in names) // POSITIONS)
        strides = {}
        for name in names:
            columns, stride = self.masters[name].shape[-1] if self.masters[name].ndim else 1, width
            while math.gcd(stride, columns) != 1:  # else a few columns alone would be read
                stride += 1
            strides[name] = stride
        return strides

    @torch.no_grad()
    def _sample(self) -> dict[str, Tensor]:
        """A copy of the weights at the positions, by group. (positions,) float32"""
        return {
            group: torch.cat([self.masters[n].detach().reshape(-1)[:: self._strides[n]].float() for n in names])
            for group, names in self.groups.items()
        }
