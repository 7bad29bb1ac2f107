"""Mixture of experts: routing against a plain loop over tokens, gradients of the router, balancing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.data.loader import Batch
from sproutlm.model import Transformer
from sproutlm.model.moe import MoE, Routing, grouped_loop
from sproutlm.objectives.next_token import next_token


def config(**moe: Any) -> ModelConfig:
    experts = {"n_experts": 4, "top_k": 2, "expert_dim": 16, **moe}
    return ModelConfig(family="research", vocab_size=30, dim=16, n_layers=2, n_heads=2, moe=experts)


def layer(**moe: Any) -> MoE:
    torch.manual_seed(0)
    made = MoE(config(**moe))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def by_token(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """The definition, one token and one expert at a time."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = moe.router.weight @ token
        scores = logits.softmax(0) if moe.moe.score == "softmax" else logits.sigmoid()
        steered = scores if moe.expert_bias is None else scores + moe.expert_bias
        chosen = steered.topk(moe.moe.top_k).indices
        weights = scores[chosen] / (scores[chosen].sum() if moe.moe.normalize else 1.0) * moe.moe.scale
        out = torch.zeros_like(token)
        for weight, e in zip(weights, chosen, strict=True):
            gate, up, down = (getattr(moe.experts, name).weight[e] for name in ("gate_proj", "up_proj", "down_proj"))
            out = out + weight * (down @ (torch.nn.functional.silu(gate @ token) * (up @ token)))
        if moe.shared is not None:
            shared = moe.shared(token)
            out = out + (shared if moe.shared_gate is None else torch.sigmoid(moe.shared_gate(token)) * shared)
        rows.append(out)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize(
    "moe",
    [
        {"normalize": False},
        {"normalize": True},
        {"top_k": 1, "normalize": True},
        {"top_k": 4},
        {"score": "sigmoid", "scale": 2.5},
        {"balance": "bias"},
        {"shared_dim": 12},
        {"shared_dim": 12, "shared_gate": True},
    ],
)
def test_the_layer_is_its_definition(moe: dict[str, Any]) -> None:
    made, x = layer(**moe), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made(x), by_token(made, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_and_loop_are_equal_forward_and_backward(dtype: torch.dtype) -> None:
    """With an expert that gets no row, one that gets a single row, and one that gets most."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(40, 16, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(5, 24, 16, generator=draw).to(dtype).requires_grad_()
    ends = torch.tensor([0, 1, 30, 30, 40], dtype=torch.int32)
    grad = torch.randn(40, 24, generator=draw).to(dtype)
    grouped = torch.nn.functional.grouped_mm(x, weight.mT, offs=ends)
    loop = grouped_loop(x, weight, ends)
    torch.testing.assert_close(grouped, loop)
    for one, other in zip(
        torch.autograd.grad(grouped, (x, weight), grad), torch.autograd.grad(loop, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_router_learns_from_the_language_models_loss(top_k: int, normalize: bool) -> None:
    """Pitfall 20: a single weight divided by itself is 1, whatever the router says."""
    made = layer(top_k=top_k, normalize=normalize, balance="none")
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(3))
    made(x).square().mean().backward()
    assert made.router.weight.grad is not None
    assert made.router.weight.grad.abs().max() > 1e-4


def batch() -> Batch:
    draw = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 30, (4, 12), generator=draw)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Batch(tokens, targets, torch.arange(12).expand(4, 12), None, torch.arange(4))


def model(**moe: Any) -> Transformer:
    torch.manual_seed(5)
    made = Transformer(config(**moe)).init_weights(1)
    for name, parameter in made.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def test_router_losses_are_in_the_gradient_and_not_in_the_printed_loss() -> None:
    losses, grads = [], []
    for weight in (0.0, 10.0):
        made = model(aux_weight=weight)
        loss, count, metrics = next_token(made, batch())
        loss.backward()
        losses.append(loss.item())
        grads.append(made.layers[0].mlp.router.weight.grad)
        assert metrics["router_balance"][0] / count >= 1.0 - 1e-6
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert (grads[0] - grads[1]).abs().max() > 1e-3


def test_loss_free_balancing_moves_each_bias_against_its_surplus() -> None:
    made = model(balance="bias")
    loss, _, _ = next_token(made, batch())
    loss.backward()
    routing = Routing()
    made(batch().tokens, batch().positions, routing=routing)
    for block, load in zip(made.layers, routing.load, strict=True):
        assert block.mlp.expert_bias.grad is not None
        assert torch.equal(block.mlp.expert_bias.grad.sign(), (load - 0.25).sign())
    before = made(batch().tokens)
    with torch.no_grad():
        made.layers[0].mlp.expert_bias += 0.7  # the same for all: the choice and the weights stay
    torch.testing.assert_close(made(batch().tokens), before)
