"""``sprout verify moe``: the router learns, grouped products equal a loop, load becomes even from a skewed start."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig
from ..config.schema import OptimizerConfig
from ..model import Transformer
from ..model.moe import MoE, Routing, can_group, grouped_loop
from ..objectives.next_token import next_token
from ..train.optim import Optimizers
from .measure import Measure, at_most, close, none_of, worst
from .model import Say, guarded, line_of, result, summary
from .parity import batch_of
from .tiny import learnable_tokens

GRADIENT = 1e-4  # what a router must at least get from the language model's loss (pitfall 20)
LAYERS: dict[str, dict[str, Any]] = {
    "plain weights": {"normalize": False},
    "normalised weights": {"normalize": True},
    "top-1, normalised": {"top_k": 1},
    "all experts": {"top_k": 4},
    "sigmoid scores, scaled": {"score": "sigmoid", "scale": 2.5},
    "loss-free bias": {"balance": "bias"},
    "shared expert": {"shared_dim": 12},
    "gated shared expert": {"shared_dim": 12, "shared_gate": True},
}


def config_of(dim: int = 16, vocab: int = 32, **moe: Any) -> ModelConfig:
    experts = {"n_experts": 4, "top_k": 2, "expert_dim": 16, **moe}
    return ModelConfig(family="research", vocab_size=vocab, dim=dim, n_layers=2, n_heads=2, moe=experts)


def random_layer(**moe: Any) -> MoE:
    layer, generator = MoE(config_of(**moe)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return layer


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the layer ----------------------------------------------------------------------------------------------------------


def one_token(layer: MoE, token: Tensor) -> Tensor:
    """The definition, one token and one expert at a time. (dim,) -> (dim,)"""
    moe = layer.moe
    logits = layer.router.weight @ token
    scores = logits.softmax(0) if moe.score == "softmax" else logits.sigmoid()
    chosen = (scores if layer.expert_bias is None else scores + layer.expert_bias).topk(moe.top_k).indices
    weights = scores[chosen] / (scores[chosen].sum() if moe.normalize else 1.0) * moe.scale
    out = torch.zeros_like(token)
    for weight, e in zip(weights, chosen, strict=True):
        gate, up, down = (getattr(layer.experts, name).weight[e] for name in ("gate_proj", "up_proj", "down_proj"))
        out = out + weight * (down @ (F.silu(gate @ token) * (up @ token)))
    if layer.shared is not None:
        shared = layer.shared(token)
        out = out + (shared if layer.shared_gate is None else torch.sigmoid(layer.shared_gate(token)) * shared)
    return out


@torch.no_grad()
def layer_is_its_definition(**moe: Any) -> Measure:
    layer, x = random_layer(**moe), random(2, 9, 16)
    expected = torch.stack([one_token(layer, token) for token in x.reshape(-1, 16)]).view(x.shape)
    return close(layer(x), expected, atol=1e-5, rtol=1e-5)


def grouped_is_loop(dtype: torch.dtype) -> Measure:
    """Values and gradients, with an expert that gets no row, one that gets one, and one that gets most."""
    x, weight = random(40, 16).to(dtype).requires_grad_(), random(5, 24, 16, seed=3).to(dtype).requires_grad_()
    if not can_group(x, weight):
        return Measure(0.0, note="this torch has no grouped product; the loop is used everywhere")
    ends, grad = torch.tensor([0, 1, 30, 30, 40], dtype=torch.int32), random(40, 24, seed=4).to(dtype)
    found = []
    for product in (F.grouped_mm(x, weight.mT, offs=ends), grouped_loop(x, weight, ends)):
        found.append([product, *torch.autograd.grad(product, (x, weight), grad)])
    atol, rtol = (1e-5, 1.3e-6) if dtype == torch.float32 else (0.05, 0.016)
    return worst(close(a, b, atol=atol, rtol=rtol) for a, b in zip(*found, strict=True))


def one_by_one_is_products(dtype: torch.dtype) -> Measure:
    """The loop over experts that a CPU takes, beside the layer product by product: values and the gradients of inputs,
    weights and all three matrices, with an expert that gets no row and one that gets most."""
    experts = random_layer(n_experts=5, expert_dim=24).experts.to(dtype)
    x, weights = random(20, 16).to(dtype).requires_grad_(), random(40, seed=3).to(dtype).requires_grad_()
    tokens, ends = torch.arange(40) * 7 % 20, torch.tensor([0, 1, 30, 30, 40], dtype=torch.int32)
    grad, wanted = random(20, 16, seed=4).to(dtype), (x, weights, *experts.parameters())
    found = []
    for way in (experts, experts.product_by_product):
        out = way(x, weights, tokens, ends)
        found.append([out, *torch.autograd.grad(out, wanted, grad)])
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (0.1, 0.05)
    return worst(close(a, b, atol=atol, rtol=rtol) for a, b in zip(*found, strict=True))


def router_gradient(top_k: int, normalize: bool) -> Measure:
    """pitfall 20: from the language model's loss alone; one weight divided by itself would give none."""
    model = model_of(top_k=top_k, normalize=normalize, balance="none")
    total, count, _ = next_token(model, batch_of(learnable_tokens(4, 16, seed=1, vocab=32)))
    (total / count).backward()
    grads = [router.weight.grad for router in routers(model)]
    smallest = min(0.0 if grad is None else grad.abs().max().item() for grad in grads)
    return Measure(smallest, GRADIENT, ok=smallest > GRADIENT, note="at least")


def model_of(dim: int = 16, **moe: Any) -> Transformer:
    """The initial weights, but with branches that already write into the residual stream."""
    model = Transformer(config_of(dim, **moe)).init_weights(1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def routers(model: Transformer) -> list[nn.Linear]:
    return [module.router for module in model.modules() if isinstance(module, MoE)]


# --- balance ------------------------------------------------------------------------------------------------------------

BALANCE_STEPS, EXPERTS = 100, 8
EVEN, SKEWED = 1.75, 2.5  # load of the busiest expert, in even shares


def skewed_run(balance: str) -> tuple[float, float, float]:
    """Train a tiny model whose routers send nearly all to two experts; the busiest expert's load, in even shares, at
    first and over the last steps, and the least busy one's at the end."""
    model = model_of(32, n_experts=EXPERTS, balance=balance, aux_weight=0.05, bias_rate=0.03)
    drift = torch.full((32,), 0.04)  # shared by all tokens, so that a router can favour experts whatever the token
    with torch.no_grad():
        model.embed_tokens.weight.add_(drift)
        for router in routers(model):
            router.weight[:2].add_(0.12)
    masters: dict[str, Tensor] = dict(model.named_parameters())
    config = OptimizerConfig(name="adamw", lr=3e-3, weight_decay=0.0)
    optimizers = Optimizers(config, masters, torch.float32, model.config.moe.bias_rate if model.config.moe else 0.0)
    busiest, idlest = [], []
    for step in range(BALANCE_STEPS):
        total, count, metrics = next_token(model, batch_of(learnable_tokens(8, 32, seed=step, vocab=32)))
        for parameter in masters.values():
            parameter.grad = None
        (total / count).backward()
        optimizers.step(1.0, 0.5)
        busiest.append(metrics["expert_load_max"][0] / count)
        idlest.append(metrics["expert_load_min"][0] / count)
    return busiest[0], sum(busiest[-10:]) / 10, sum(idlest[-10:]) / 10


def becomes_even(balance: str) -> Measure:
    first, last, least = skewed_run(balance)
    if first < SKEWED:
        return none_of([f"the start is not skewed: {first:.2f} even shares"])
    return at_most(
        last, EVEN, f"busiest expert {first:.1f} even shares at first, {last:.2f} at last; idlest {least:.2f}"
    )


def stays_skewed() -> Measure:
    """The two checks beside this one can fail: without balancing the same start stays skewed."""
    first, last, _ = skewed_run("none")
    return Measure(last, SKEWED, ok=last > SKEWED, note=f"at least; {first:.1f} at first")


def z_loss_shrinks_logits() -> Measure:
    """The router z-loss is in the gradient: a step against it lowers logsumexp squared, a step without it less."""
    found = []
    for weight in (0.0, 1.0):
        model = model_of(z_weight=weight, balance="none")
        batch = batch_of(learnable_tokens(4, 16, seed=1, vocab=32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            total, count, _ = next_token(model, batch)
            (total / count).backward()
            optimizer.step()
        routing = Routing()
        model(batch.tokens, routing=routing)
        found.append(torch.stack(routing.z).mean().item())
    return at_most(found[1] / found[0], 0.9, "z with the loss over z without it")


def router_losses_are_not_printed() -> Measure:
    """The printed loss is the language model's, whatever the balancing weight; the gradient is not."""
    losses, grads = [], []
    for weight in (0.0, 10.0):
        model = model_of(aux_weight=weight)
        total, count, _ = next_token(model, batch_of(learnable_tokens(4, 16, seed=1, vocab=32)))
        (total / count).backward()
        losses.append((total / count).item())
        gradient = routers(model)[0].weight.grad
        assert gradient is not None
        grads.append(gradient)
    if (grads[0] - grads[1]).abs().max() < 1e-3:
        return none_of(["the balancing loss has no gradient"])
    return at_most(abs(losses[0] - losses[1]), 1e-5)


def at_top(k: int) -> dict[str, Callable[[], Measure]]:
    return {"normalised": partial(router_gradient, k, True), "plain": partial(router_gradient, k, False)}


CHECKS: tuple[tuple[str, dict[str, Callable[[], Measure]]], ...] = (
    (
        "the layer equals its definition, token by token",
        {name: partial(layer_is_its_definition, **moe) for name, moe in LAYERS.items()},
    ),
    ("grouped product equals a loop, values and gradients, float32", {"": partial(grouped_is_loop, torch.float32)}),
    ("grouped product equals a loop, values and gradients, bfloat16", {"": partial(grouped_is_loop, torch.bfloat16)}),
    ("expert by expert equals product by product, float32", {"": partial(one_by_one_is_products, torch.float32)}),
    ("expert by expert equals product by product, bfloat16", {"": partial(one_by_one_is_products, torch.bfloat16)}),
    ("router gradient from the language model's loss, top-1", at_top(1)),
    ("router gradient from the language model's loss, top-2", at_top(2)),
    ("router losses are trained and not printed", {"": router_losses_are_not_printed}),
    ("router z-loss shrinks router logits", {"": z_loss_shrinks_logits}),
    ("a skewed start becomes even: auxiliary loss", {"": partial(becomes_even, "aux")}),
    ("a skewed start becomes even: loss-free bias", {"": partial(becomes_even, "bias")}),
    ("a skewed start stays skewed without either", {"": stays_skewed}),
)


def verify_moe(say: Say = lambda line: None) -> dict[str, Any]:
    """Quick checks of the mixture of experts; the report has the form of ``verify_model``'s. (Whether experts pay off is
    a run of minutes: benchmarks/moe.py.)"""
    started, checks = time.perf_counter(), list[dict[str, Any]]()
    say(f"mixture of experts, torch {torch.__version__}")
    for promise, measures in CHECKS:
        measured = [(name, guarded(measure)) for name, measure in measures.items()]
        found = result("mixture of experts", promise, measured)
        if found["note"].startswith("at least"):  # the smallest is then the worst
            found = result("mixture of experts", promise, [min(measured, key=lambda one: one[1].error)])
            found["shapes"] = len(measured)
        checks.append(found)
        say(line_of(checks[-1]))
    return summary(checks, started)
