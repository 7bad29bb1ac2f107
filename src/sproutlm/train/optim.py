"""Which optimizer updates which parameter, at which rate, at which step; and its state as named tensors."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ..config.schema import OptimizerConfig
from ..distributed.layout import Layout, Piece
from ..distributed.matrix_work import MatrixWork
from . import adamw8
from .adamw8 import AdamW8
from .muon import Muon, variance_shape


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Matrices inside the blocks, those of stacked experts included: what Muon updates. Routers are AdamW's."""
    return parameter.ndim >= 2 and name.startswith("layers.") and not name.endswith("router.weight")


def is_expert_bias(name: str) -> bool:
    """Biases that only steer the choice of experts: their gradient is the surplus of load, and its sign is the update."""
    return name.endswith(".expert_bias")


def in_bytes(parameter: Tensor, state_dtype: str) -> bool:
    """Whether AdamW keeps its averages of ``parameter`` in a byte each."""
    return state_dtype == "int8" and parameter.numel() >= adamw8.LEAST


ENTRYWISE = ("momentum", "exp_avg", "exp_avg_sq")  # state with an entry for each of the parameter's


class SignDescent(torch.optim.Optimizer):
    """``p -= lr * sign(gradient)``, at a constant rate: how loss-free balancing moves its biases (arXiv:2408.15664)."""

    def __init__(self, params: list[Tensor], lr: float) -> None:
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


def state_shapes(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """What ``optimizer`` keeps of ``parameter``, as it is stored: name -> shape."""
    shape = tuple(parameter.shape)
    if isinstance(optimizer, Muon):
        return {"momentum": shape, "variance": variance_shape(optimizer.work.shape(parameter))}
    if isinstance(optimizer, AdamW8):
        return adamw8.state_shapes(parameter)
    return {"step": (1,), "exp_avg": shape, "exp_avg_sq": shape}


def _only(groups: list[dict], state_dtype: str, large: bool) -> list[dict]:
    """``groups`` with those parameters alone whose state takes a byte (``large``), or more."""
    found = [g | {"params": [p for p in g["params"] if in_bytes(p, state_dtype) == large]} for g in groups]
    return [g for g in found if g["params"]]


class Optimizers:
    """The optimizers of one run over named float32 masters. Rates at a step are pure functions of the step."""

    def __init__(
        self,
        config: OptimizerConfig,
        masters: dict[str, Tensor],
        muon_dtype: torch.dtype,
        expert_bias_rate: float = 0.001,
        layout: Layout | None = None,
    ) -> None:
        self.config = config
        self.masters = masters
        self.layout = layout or Layout()
        steering = [p for n, p in masters.items() if is_expert_bias(n)]
        masters = {n: p for n, p in masters.items() if not is_expert_bias(n)}
        self.optimizers: list[torch.optim.Optimizer] = []
        decay = config.weight_decay
        how: dict[str, Any]
        adamw_groups: list[dict] = []
        if config.name == "muon":
            matrices = [p for n, p in masters.items() if is_block_matrix(n, p)]
            how = {"weight_decay": decay, "compute": muon_dtype, "work": MatrixWork(self.layout, masters)}
            self.optimizers.append(Muon([{"params": matrices, "peak": config.lr}], config.lr, **how))
            rest = {n: p for n, p in masters.items() if not is_block_matrix(n, p)}
            tables = [p for p in rest.values() if p.ndim == 2]
            vectors = [p for p in rest.values() if p.ndim != 2]
            adamw_groups.append({"params": tables, "peak": config.embedding_lr, "weight_decay": 0.0})
            adamw_groups.append({"params": vectors, "peak": config.scalar_lr, "weight_decay": 0.0})
        else:
            tables = [p for p in masters.values() if p.ndim >= 2]
            vectors = [p for p in masters.values() if p.ndim < 2]
            adamw_groups.append({"params": tables, "peak": config.lr, "weight_decay": decay})
            adamw_groups.append({"params": vectors, "peak": config.lr, "weight_decay": 0.0})
        how = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        small, large = (_only(adamw_groups, config.state_dtype, large) for large in (False, True))
        if small:
            self.optimizers.append(torch.optim.AdamW(small, fused=True, **how))
        if large:
            self.optimizers.append(AdamW8(large, **how))
        if steering:
            self.optimizers.append(SignDescent(steering, expert_bias_rate))

    def step(self, multiplier: float, progress: float) -> None:
        """One update from the gradients in ``masters[...].grad``; ``progress`` is the share of the run done, 0 to 1."""
        c = self.config
        warm = min(1.0, progress / c.momentum_warmup) if c.momentum_warmup else 1.0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(optimizer, SignDescent):
                    continue
                group["lr"] = group["peak"] * multiplier
                if isinstance(optimizer, Muon):
                    group["momentum"] = c.momentum_start + (c.momentum - c.momentum_start) * warm
            optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """State by ``parameter/key``, for a checkpoint; CPU step counts become 1-element tensors."""
        names = {id(p): n for n, p in self.masters.items()}
        out: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    out[f"{names[id(parameter)]}/{key}"] = value.detach().reshape(value.shape or (1,))
        return out

    def pieces(self) -> dict[str, Piece]:
        """Which part of each tensor of ``tensors()`` lies here, by the same names; known before the first step."""
        owner = {id(p): o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        out = {}
        for name, parameter in self.masters.items():
            if id(parameter) not in owner or isinstance(owner[id(parameter)], SignDescent):
                continue
            piece = self.layout.piece(name, parameter)
            for key, shape in state_shapes(owner[id(parameter)], parameter).items():
                if key in ENTRYWISE and shape == tuple(parameter.shape):
                    out[f"{name}/{key}"] = piece
                elif key == "variance" and parameter.ndim > 2:  # of a stack of matrices, split as the stack is
                    out[f"{name}/{key}"] = Piece((piece.shape[0], *shape[1:]), piece.splits)
                else:
                    out[f"{name}/{key}"] = Piece(shape)
        return out

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors()`` gave; ValueError where it is not the state of these optimizers (pitfall 32)."""
        owner = {id(p): o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        by_parameter: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, value in tensors.items():
            name, key = full_name.rsplit("/", 1)
            by_parameter[name][key] = value
        for name, state in by_parameter.items():
            if name not in self.masters:
                raise ValueError(f"the optimizer state names {name!r}, which the model does not have")
            parameter = self.masters[name]
            optimizer = owner[id(parameter)]
            expected = state_shapes(optimizer, parameter)
            found = {key: tuple(value.shape) for key, value in state.items()}
            if found != expected:
                raise ValueError(
                    f"{name}: the optimizer state is {found}; {type(optimizer).__name__} here needs {expected}"
                )
            for key, value in state.items():
                value = value.reshape(()) if key == "step" else value.to(parameter.device)
                optimizer.state[parameter][key] = value.clone()
