"""Which parameter goes to which optimizer, at which rate, and whether the state survives being stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import OptimizerConfig
from sproutlm.model import Transformer
from sproutlm.train.muon import Muon
from sproutlm.train.optim import Optimizers

UNTIED = ModelConfig(vocab_size=24, dim=8, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=8, tie_embeddings=False)


def masters_of(config: ModelConfig = UNTIED) -> dict[str, Tensor]:
    return dict(Transformer(config).init_weights(0).named_parameters())


def with_gradients(masters: dict[str, Tensor], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in masters.values():
        parameter.grad = torch.randn(parameter.shape, generator=g)


def where(optimizers: Optimizers) -> dict[str, tuple[str, float, float]]:
    """Parameter name -> (optimizer, peak rate, weight decay)."""
    names = {id(p): n for n, p in optimizers.masters.items()}
    return {
        names[id(p)]: (type(o).__name__, group["peak"], group["weight_decay"])
        for o in optimizers.optimizers
        for group in o.param_groups
        for p in group["params"]
    }


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    config = OptimizerConfig(name="muon", lr=0.1, embedding_lr=0.2, scalar_lr=0.3, weight_decay=0.4)
    got = where(Optimizers(config, masters_of(), torch.float32))
    assert got.keys() == masters_of().keys(), "each parameter has exactly one owner"
    assert got["embed_tokens.weight"] == got["lm_head.weight"] == ("AdamW", 0.2, 0.0)
    assert got["norm.weight"] == got["layers.0.attention.q_norm.weight"] == ("AdamW", 0.3, 0.0)
    matrices = [name for name in got if name.startswith("layers.") and "norm" not in name]
    assert len(matrices) == 7 and {got[name] for name in matrices} == {("Muon", 0.1, 0.4)}


def test_adamw_decays_matrices_only() -> None:
    got = where(Optimizers(OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.4), masters_of(), torch.float32))
    assert {v for n, v in got.items() if "norm" in n} == {("AdamW", 0.1, 0.0)}
    assert {v for n, v in got.items() if "norm" not in n} == {("AdamW", 0.1, 0.4)}


def test_rates_follow_the_multiplier_and_momentum_its_warmup() -> None:
    config = OptimizerConfig(lr=0.1, scalar_lr=0.2, momentum_start=0.8, momentum=0.9, momentum_warmup=0.5)
    masters = masters_of()
    optimizers = Optimizers(config, masters, torch.float32)
    for progress, momentum in ((0.0, 0.8), (0.25, 0.85), (0.5, 0.9), (1.0, 0.9)):
        with_gradients(masters, 0)
        optimizers.step(0.5, progress)
        for o in optimizers.optimizers:
            for group in o.param_groups:
                assert group["lr"] == group["peak"] * 0.5
                assert not isinstance(o, Muon) or group["momentum"] == pytest.approx(momentum)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_next_step_after_storing_the_state_is_bitwise_equal(name: str) -> None:
    """Pitfall 26: momentum, variances and step counts all travel."""
    config = OptimizerConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    first = masters_of()
    optimizers = Optimizers(config, first, torch.float32)
    for step in range(3):
        with_gradients(first, step)
        optimizers.step(1.0, step / 10)
    stored = {k: v.clone() for k, v in optimizers.tensors().items()}
    second = {n: p.detach().clone().requires_grad_() for n, p in first.items()}
    restored = Optimizers(config, second, torch.float32)
    restored.load_tensors(stored)
    for masters, each in ((first, optimizers), (second, restored)):
        with_gradients(masters, 9)
        each.step(0.7, 0.3)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert all(torch.equal(v, restored.tensors()[k]) for k, v in optimizers.tensors().items())


def test_stored_state_is_named_and_float32() -> None:
    masters = masters_of()
    optimizers = Optimizers(OptimizerConfig(), masters, torch.bfloat16)
    with_gradients(masters, 0)
    optimizers.step(1.0, 0.0)
    tensors = optimizers.tensors()
    assert {name.rsplit("/", 1)[0] for name in tensors} == masters.keys()
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(t.ndim > 0 for t in tensors.values()), "safetensors readers differ on 0-d tensors"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda t: t | {"layers.9.mlp.up_proj.weight/momentum": torch.zeros(2, 2)}, "does not have"),
        (lambda t: {k: v for k, v in t.items() if k != "norm.weight/exp_avg_sq"}, "norm.weight.*exp_avg_sq"),
        (lambda t: t | {"norm.weight/exp_avg": torch.zeros(3)}, "norm.weight.*(3,)"),
        (lambda t: t | {"norm.weight/momentum": torch.zeros(8)}, "norm.weight.*AdamW"),
    ],
    ids=["unknown", "missing", "misshapen", "of another optimizer"],
)
def test_state_that_does_not_fit_is_named(fault, words: str) -> None:  # type: ignore[no-untyped-def]
    """Pitfall 32, for the optimizer."""
    masters = masters_of()
    optimizers = Optimizers(OptimizerConfig(), masters, torch.float32)
    with_gradients(masters, 0)
    optimizers.step(1.0, 0.0)
    with pytest.raises(ValueError, match=words):
        Optimizers(OptimizerConfig(), masters_of(), torch.float32).load_tensors(fault(optimizers.tensors()))


def test_expert_biases_move_by_their_rate_against_the_surplus_whatever_the_schedule() -> None:
    name = "layers.0.mlp.expert_bias"
    masters = {**masters_of(), name: torch.nn.Parameter(torch.zeros(3))}
    optimizers = Optimizers(OptimizerConfig(), masters, torch.float32, expert_bias_rate=0.25)
    for parameter in masters.values():
        parameter.grad = torch.zeros_like(parameter)
    masters[name].grad = torch.tensor([3.0, 0.0, -1e-6])
    optimizers.step(0.5, 0.5)
    assert masters[name].tolist() == [-0.25, 0.0, 0.25]
