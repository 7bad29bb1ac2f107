"""Mixture of experts: a router sends each token to a few of many narrow MLPs; no expert has a capacity, no token is dropped.

    scores = softmax(x @ router)        chosen = the top_k of scores (+ expert_bias)        out = sum of weight * expert(x)

The weights come from the scores alone, so the router learns from the language-model loss; ``expert_bias`` only moves the
choice (Wang et al. 2024, arXiv:2408.15664).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import ModelConfig, MoEConfig
from .expert_loop import expert_loop
from .layers import MLP
from .products import ACTIVATIONS, linear


class Routing:
    """What the routers of one forward pass did, layer by layer; made by whoever wants to know, filled by the layers.

    ``balance`` and ``z`` are scalars with gradient, one per layer; ``load`` the share of choices that went to each
    expert (experts,), without gradient; ``entropy`` of the mean router distribution, in nats; ``steering`` has the value 0,
    and its gradient pushes expert_bias towards even load. (Not a dataclass: FSDP2 hands every block a copy of one that holds
    gradients, and what later layers note would be lost.)
    """

    def __init__(self) -> None:
        self.balance: list[Tensor] = []
        self.z: list[Tensor] = []
        self.load: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.steering: list[Tensor] = []

    def extend(self, later: Routing) -> None:
        """Append what the routers of ``later`` layers did."""
        for name, found in vars(later).items():
            getattr(self, name).extend(found)


class Experts(nn.Module):
    """``n`` gated MLPs as stacked weights, (experts, out, in)."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.gate_proj = Stacked(moe.n_experts, moe.expert_dim, config.dim)
        self.up_proj = Stacked(moe.n_experts, moe.expert_dim, config.dim)
        self.down_proj = Stacked(moe.n_experts, config.dim, moe.expert_dim)
        self.activation = config.activation

    def forward(self, x: Tensor, weights: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """Each token's weighted sum over its experts, (tokens, dim) -> (tokens, dim). ``weights`` and ``tokens`` (rows,) of
        the choices sorted by expert; expert e has the rows up to ``ends[e]`` (int32)."""
        if x.device.type == "cpu" and self.activation == "silu":
            matrices = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
            return expert_loop(x, weights, tokens, ends, *matrices)
        return self.product_by_product(x, weights, tokens, ends)

    def product_by_product(self, x: Tensor, weights: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """The same through torch's grouped products."""
        rows = x[tokens]
        hidden = ACTIVATIONS[self.activation](self.gate_proj(rows, ends)) * self.up_proj(rows, ends)
        return torch.zeros_like(x).index_add_(0, tokens, self.down_proj(hidden, ends) * weights[:, None])


class Stacked(nn.Module):
    """Linear layers without bias, one per expert, applied to consecutive groups of rows."""

    def __init__(self, n: int, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, out_features, in_features))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        if can_group(x, self.weight):
            return F.grouped_mm(x, self.weight.mT, offs=ends)
        return grouped_loop(x, self.weight, ends)


def can_group(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes these: rows of both must be a multiple of 16 bytes. (fp16 is for cards that are
    too old for it.)"""
    fits = all(size * x.element_size() % 16 == 0 for size in (x.shape[-1], weight.shape[-2]))
    return hasattr(F, "grouped_mm") and fits and x.dtype != torch.float16


def grouped_loop(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same product, expert by expert. (rows, in), (experts, out, in) -> (rows, out)"""
    bounds = [0, *ends.tolist()]
    # unbind, not weight[e]: the gradient of an index is a whole tensor of zeros, once per expert.
    parts = [linear(x[bounds[e] : bounds[e + 1]], one) for e, one in enumerate(weight.unbind(0))]
    return torch.cat(parts)


class MoE(nn.Module):
    """In place of the MLP of a block. (batch, seq, dim) -> (batch, seq, dim)"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.moe = moe = config.moe
        self.router = nn.Linear(config.dim, moe.n_experts, bias=False)
        self.experts = Experts(config, moe)
        self.expert_bias = nn.Parameter(torch.zeros(moe.n_experts)) if moe.balance == "bias" else None
        self.shared = MLP(config, moe.shared_dim) if moe.shared_dim else None
        self.shared_gate = nn.Linear(config.dim, 1, bias=False) if moe.shared_gate else None

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (tokens, dim)
        logits = self.router(flat)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (tokens, experts)
        scores = logits.softmax(-1) if self.moe.score == "softmax" else logits.sigmoid()
        choice = scores if self.expert_bias is None else scores.detach() + self.expert_bias.detach().float()
        chosen = choice.topk(self.moe.top_k, dim=-1).indices  # (tokens, top_k)
        weights = self._weights(scores.gather(-1, chosen)).to(x.dtype)
        if routing is not None:
            self._note(routing, logits, scores, chosen)

        order = chosen.flatten().argsort(stable=True)  # rows of one expert together
        tokens = order // self.moe.top_k
        ends = torch.bincount(chosen.flatten(), minlength=self.moe.n_experts).cumsum(0).to(torch.int32)
        out = self.experts(flat, weights.flatten()[order], tokens, ends)
        if self.shared is not None:
            shared = self.shared(flat)
            out = out + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(flat)) * shared)
        return out.view(x.shape)

    def _weights(self, scores: Tensor) -> Tensor:
        """Of the chosen experts, (tokens, top_k). A single normalised weight is 1 and would teach the router nothing:
        its value is kept and its gradient is that of the score relative to itself (pitfall 20)."""
        if self.moe.normalize:
            total = scores.sum(-1, keepdim=True)
            scores = scores / (total.detach() if self.moe.top_k == 1 else total)
        return scores * self.moe.scale if self.moe.scale != 1.0 else scores

    def _note(self, routing: Routing, logits: Tensor, scores: Tensor, chosen: Tensor) -> None:
        n = self.moe.n_experts
        load = torch.bincount(chosen.flatten(), minlength=n).float() / chosen.numel()  # (experts,)
        probabilities = scores if self.moe.score == "softmax" else scores / scores.sum(-1, keepdim=True)
        mean = probabilities.mean(0)
        # n * sum(load * mean probability) is 1 where both are even (Fedus et al. 2021, arXiv:2101.03961).
        routing.balance.append(n * (load * mean).sum())
        routing.z.append(logits.logsumexp(-1).square().mean())
        routing.load.append(load)
        routing.entropy.append(torch.special.entr(mean.detach()).sum())
        if self.expert_bias is not None:
            surplus = load - 1 / n
            routing.steering.append(((self.expert_bias - self.expert_bias.detach()) * surplus).sum())
