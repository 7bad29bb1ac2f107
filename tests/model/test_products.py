"""Whatever library multiplies: the values and gradients are those of float64, within the rounding of the type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sproutlm.model import products
from sproutlm.model.products import ACTIVATIONS, Linear, linear, product

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN operator for linear layers")
ROWS, IN, OUT = (3, 70), 96, 128  # 3 * 70 * 96 * 128 multiplications: worth the call


@pytest.fixture(params=[False, True], ids=["torch's choice", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways on any machine, counted so that the wanted one is known to be taken."""
    if request.param and not ONEDNN:
        pytest.skip("this torch has no oneDNN operator for linear layers")
    monkeypatch.setattr(products, "mkl_is_slow", lambda: request.param)
    return bool(request.param)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_and_its_gradients_are_those_of_float64(library: bool, bias: bool) -> None:
    layer, x, grad = Linear(IN, OUT, bias=bias), random(*ROWS, IN, seed=1).requires_grad_(), random(*ROWS, OUT, seed=2)
    out = layer(x)
    assert ("OneDNN" in type(out.grad_fn).__name__) is library
    got = torch.autograd.grad(out, (x, *layer.parameters()), grad)

    exact = nn.Linear(IN, OUT, bias=bias, dtype=torch.float64)
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    exact_x = x.detach().double().requires_grad_()
    expected = exact(exact_x)
    assert off(out, expected) < 1e-6
    for a, b in zip(got, torch.autograd.grad(expected, (exact_x, *exact.parameters()), grad.double()), strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape and off(a, b) < 1e-6


def test_transposed_and_sliced_matrices_are_multiplied_as_they_are(library: bool) -> None:
    a, b = random(300, 200, seed=3)[:, 40:140], random(90, 400, seed=4)[:, ::4]
    for left, right in ((a, b.mT), (a.mT.contiguous().mT, b.mT.contiguous()), (b, a.mT)):
        assert off(product(left, right), left.double() @ right.double()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_an_activation_in_the_same_pass_is_the_same(library: bool, activation: str, dtype: torch.dtype) -> None:
    layer, x = Linear(IN, OUT).to(dtype), random(*ROWS, IN, seed=5).to(dtype)
    exact = ACTIVATIONS[activation](x.double() @ layer.weight.double().mT + layer.bias.double())
    with torch.no_grad():
        alone = layer.activated(x, activation)
    assert alone.dtype == dtype and not alone.requires_grad
    assert off(alone, exact) < (1e-6 if dtype == torch.float32 else 2.0**-7)
    assert layer.activated(x, activation).requires_grad, "with gradients, the value before the activation is kept"


@needs_onednn
def test_small_products_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    taken = []
    real = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: taken.append(args) or real(*args))
    linear(random(2, 8, seed=6), random(8, 8, seed=7))
    assert not taken
    linear(random(*ROWS, IN, seed=6), random(OUT, IN, seed=7))
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("vendor", "capability", "slow"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
@needs_onednn
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch was built without MKL")
def test_only_amd_with_avx512_leaves_mkl(
    vendor: str, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.find_mkl_is_slow() is slow


def test_the_vendor_is_read_where_linux_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    monkeypatch.setattr(products, "Path", lambda _: said)
    assert products._vendor() == "AuthenticAMD"
    said.write_text("CPU implementer\t: 0x41\n")
    monkeypatch.setattr(products.platform, "processor", lambda: "aarch64")
    assert products._vendor() == ""
