"""Matrix products of linear layers: the one place that chooses the library which computes them.

On an AMD processor with AVX-512, torch multiplies float32 matrices with MKL, which does not use AVX-512 there: 190
GFLOP/s on two cores against 410 of oneDNN, also float32 throughout, which torch already brings along for bf16. Both are
as far from the float64 result (relative error 2 to 4e-7). So float32 products that are worth the call go to oneDNN there.

Which library computes a product depends on the processor and the shapes alone, never on a timing: a run that is continued
on the same machine goes on bit for bit.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": relu2,
}
FUSED = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}  # oneDNN's name and kind

# Multiplications below which oneDNN's fixed cost, about 12 microseconds a call, is more than it saves (measured).
WORTH_IT = 2**21


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: (..., in), (out, in), (out,) -> (..., out)."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _OneDNNLinear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices, (m, k), (k, n) -> (m, n), for code that makes its own gradients."""
    return _onednn(a, b.mT, None) if _by_onednn(a, b) else a @ b


class Linear(nn.Linear):
    """``nn.Linear`` whose product goes through ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """``activation(self(x))``; without gradients, where oneDNN can, in the same pass over the result."""
        fused = FUSED.get(activation)
        if (
            fused is None
            or torch.is_grad_enabled()
            or not (_by_onednn(x, self.weight) or _bf16_by_onednn(x, self.weight))
        ):
            return ACTIVATIONS[activation](self(x))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, fused[0], [], fused[1])
        return out


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (rows, out)
        return (
            _onednn(grad, weight.mT, None) if needs_x else None,
            _onednn(rows.mT, x.reshape(-1, x.shape[-1]).mT, None) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's float32 linear layer, through the operator that torch's own compiler calls; it reads transposed matrices."""
    if torch.compiler.is_compiling():
        return _opaque_linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@torch.library.custom_op("sproutlm::linear", mutates_args=())
def _opaque_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for compiled blocks: torch's compiler takes its own operator only with weights that never change."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@_opaque_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _bf16_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """torch's own choice for bf16 on a CPU that has instructions for it, here asked for by name."""
    return _worth_it(x, weight, torch.bfloat16) and _onednn_with_avx512()


def _by_onednn(x: Tensor, other: Tensor) -> bool:
    return _worth_it(x, other, torch.float32) and mkl_is_slow()


def _worth_it(x: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Both of ``dtype`` on the CPU, and a product that is large enough."""
    return (
        x.dtype == other.dtype == dtype
        and x.device.type == "cpu"
        and (x.numel() // x.shape[-1]) * other.numel() >= WORTH_IT
    )


def _onednn_with_avx512() -> bool:
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


_FOUND: dict[str, bool] = {}  # not functools.cache, which torch.compile cannot look through


def mkl_is_slow() -> bool:
    """An AMD processor with AVX-512, a torch whose float32 products are MKL's, and the operator that replaces them."""
    if "slow" not in _FOUND:
        _FOUND["slow"] = find_mkl_is_slow()
    return _FOUND["slow"]


def find_mkl_is_slow() -> bool:
    return _onednn_with_avx512() and torch.backends.mkl.is_available() and _vendor() == "AuthenticAMD"


def _vendor() -> str:
    """What the processor says of its maker; empty where it cannot be known."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("vendor_id"):
                return line.split(":", 1)[1].strip()
    return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else ""
