"""float32 masters under a bf16 model."""

from __future__ import annotations

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.train.precision import MasterWeights, choose_compute

SHAPE = ModelConfig(vocab_size=16, dim=8, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=8)


def model() -> Transformer:
    return Transformer(SHAPE).init_weights(3)


def test_small_updates_are_not_lost_where_bf16_would_lose_them() -> None:
    """Pitfall 29: 1,000 updates of 1e-5 on a weight of 1 add up to 0.01; in bf16 (steps of 0.004 below 1) each is lost."""
    weights = MasterWeights(model(), torch.bfloat16)
    name = "norm.weight"  # ones
    lost = torch.ones(8, dtype=torch.bfloat16)
    for _ in range(1000):
        weights.masters[name].sub_(1e-5)
        lost.sub_(1e-5)
    weights.publish()
    assert torch.equal(lost, torch.ones(8, dtype=torch.bfloat16)), "plain bf16 does lose them: the fault is real"
    torch.testing.assert_close(weights.masters[name], torch.full((8,), 0.99), rtol=0, atol=1e-4)
    published = dict(weights.model.named_parameters())[name]
    assert published.dtype == torch.bfloat16 and (published < 1).all()


def test_masters_start_as_the_exact_float32_weights() -> None:
    fresh = model()
    expected = {n: p.detach().clone() for n, p in fresh.named_parameters()}
    weights = MasterWeights(fresh, torch.bfloat16)
    assert all(torch.equal(weights.masters[n], expected[n]) for n in expected)
    assert all(torch.equal(p, expected[n].bfloat16()) for n, p in fresh.named_parameters())


def test_publish_rounds_the_masters_into_the_model() -> None:
    weights = MasterWeights(model(), torch.bfloat16)
    for master in weights.masters.values():
        master.add_(0.123456)
    weights.publish()
    for name, parameter in weights.model.named_parameters():
        assert torch.equal(parameter, weights.masters[name].bfloat16())


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    """256 + 1 is 256 in bf16: 64 small micro-batches after a large one would vanish."""
    weights = MasterWeights(model(), torch.bfloat16)
    parameter = dict(weights.model.named_parameters())["norm.weight"]
    for value in [256.0, *[1.0] * 64]:
        parameter.grad = torch.full_like(parameter, value)
        weights.collect_gradients()
        assert parameter.grad is None
    total = weights.masters["norm.weight"].grad
    assert total is not None and total.dtype == torch.float32 and (total == 320).all()


def test_in_float32_the_masters_are_the_parameters_themselves() -> None:
    weights = MasterWeights(model(), torch.float32)
    assert not weights.separate
    assert all(weights.masters[n] is p for n, p in weights.model.named_parameters())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_loading_refuses_what_does_not_fit_and_names_it(compute: torch.dtype) -> None:
    """Pitfall 32: a missing, an extra and a misshapen tensor are errors with the tensor's name; nothing is half loaded."""
    weights = MasterWeights(model(), compute)
    state = {n: m.detach().clone() for n, m in weights.masters.items()}
    before = {n: m.detach().clone() for n, m in weights.masters.items()}
    with pytest.raises(ValueError, match="missing: .'norm.weight'"):
        weights.load({n: t for n, t in state.items() if n != "norm.weight"})
    with pytest.raises(ValueError, match="not in the model: .'lora.weight'"):
        weights.load(state | {"lora.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"norm.weight has shape \(9,\); the model needs \(8,\)"):
        weights.load({n: t + 1 for n, t in state.items()} | {"norm.weight": torch.zeros(9)})
    assert all(torch.equal(weights.masters[n], before[n]) for n in before)


def test_loading_fills_masters_and_model() -> None:
    weights = MasterWeights(model(), torch.bfloat16)
    state = {n: m.detach() + 0.5 for n, m in weights.masters.items()}
    weights.load(state)
    assert all(torch.equal(weights.masters[n], state[n]) for n in state)
    assert all(torch.equal(p, state[n].bfloat16()) for n, p in weights.model.named_parameters())


def test_the_compute_type_is_chosen_with_a_reason() -> None:
    dtype, why = choose_compute(torch.device("cpu"))
    assert dtype in (torch.bfloat16, torch.float32) and "ms" in why
