"""Compute type and master weights: float32 masters always; bf16 or fp16 copies of them, made once per step, where faster."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..model.products import product

# Compute capability: the first with matrix units.
FP16_SINCE = (7, 0)


def matmul_seconds(dtype: torch.dtype, size: int = 1024, budget: float = 0.25) -> float:
    """Median seconds of one size-cubed product as the model's layers make it, measured for about ``budget`` seconds."""
    a = torch.randn(size, size).to(dtype)
    times: list[float] = []
    end = time.perf_counter() + budget
    product(a, a).sum().item()  # first call pays for thread start and packing
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        product(a, a)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def choose_compute(device: torch.device) -> tuple[torch.dtype, str]:
    """bf16 where its matrix units are fast, fp16 on cards that have units for that alone, float32 elsewhere; with the reason as
    a sentence. Takes about a second on CPU."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has bf16 matrix units"
        if torch.cuda.get_device_capability(device) >= FP16_SINCE:
            return torch.float16, "this GPU has fp16 matrix units and no bf16 ones; the loss is scaled"
        return torch.float32, "this GPU has no matrix units"
    low, full = matmul_seconds(torch.bfloat16), matmul_seconds(torch.float32)
    ratio = full / low
    sentence = f"a bf16 product takes {low * 1e3:.1f} ms, a float32 one {full * 1e3:.1f} ms ({ratio:.1f}x)"
    # Below about 1.3x the copies and the bf16 element-wise work eat what the products gain.
    return (torch.bfloat16 if ratio > 1.3 else torch.float32), sentence


class MasterWeights:
    """float32 masters of a model's parameters, and the model in its compute type.

    In float32 (and float64, for proofs) the masters are the parameters themselves. In bf16 and fp16 the model holds rounded copies; gradients are summed
    over micro-batches in float32, and updates are never lost to rounding (pitfall 29).
    """

    def __init__(self, model: nn.Module, compute: torch.dtype) -> None:
        self.model = model
        self.compute = compute
        self.masters: dict[str, Tensor] = {n: p.detach().float() for n, p in model.named_parameters()}
        if not self.separate:
            model.to(compute)
            self.masters = dict(model.named_parameters())
        else:
            self.masters = {n: p.clone() for n, p in self.masters.items()}
            model.to(compute)
        self._pairs = [(self.masters[n], p) for n, p in model.named_parameters()]

    @property
    def separate(self) -> bool:
        return self.compute not in (torch.float32, torch.float64)

    def begin(self, last: bool) -> None:
        """Before each micro-batch of a step; ``last``: no other follows."""

    def collect_gradients(self) -> None:
        """Add the model's gradients to the masters', in float32, and free them. Call after each backward pass."""
        if not self.separate:
            return
        for master, parameter in self._pairs:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def add_gradients(self, grads: list[Tensor | None]) -> None:
        """Add one micro-batch's gradients, in the order of the model's parameters, to the masters' in float32."""
        if not grads:  # the micro-batch trained nothing
            return
        for (master, _), grad in zip(self._pairs, grads, strict=True):
            if grad is None:
                continue
            if master.grad is None:
                master.grad = grad.float()
            else:
                master.grad.add_(grad)

    def free_gradients(self) -> None:
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model: once per step."""
        if self.separate:
            torch._foreach_copy_([p for _, p in self._pairs], [m for m, _ in self._pairs])

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Fill the masters from ``state``; names and shapes must fit exactly (pitfall 32)."""
        missing, extra = self.masters.keys() - state.keys(), state.keys() - self.masters.keys()
        if missing or extra:
            raise ValueError(f"tensors missing: {sorted(missing)[:5]}; not in the model: {sorted(extra)[:5]}")
        for name, master in self.masters.items():
            if master.shape != state[name].shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}; the model needs {tuple(master.shape)}")
        for name, master in self.masters.items():  # only once all of them fit
            master.copy_(state[name])
        self.publish()
