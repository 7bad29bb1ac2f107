"""Next-token prediction: pretraining and SFT differ only in which targets their data marks as trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config.model import MoEConfig
from ..data.loader import Batch
from ..model import Transformer
from ..model.moe import Routing
from ..model.transformer import Head
from ..train.loss import cross_entropy_sum, cross_entropy_with_z


def next_token(
    model: Transformer, batch: Batch, z_loss: float = 0.0, chunk: int = 0, scale: float = 1.0
) -> tuple[Tensor, int, dict[str, tuple[float, float]]]:
    """Sum of token losses (nats) and number of trained targets; the loss runs inside ``forward``, as its head.

    ``z_loss`` weighs log(Z)^2 of each target in the gradient, not in the value; the metric of that name is what it adds.
    ``chunk``: tokens whose logits exist at once; 0 = as many as the loss chooses. ``scale``: what the trainer multiplies the sum
    by before the backward pass (fp16); no value changes with it.
    """
    config, count = model.config, batch.trained
    routing = Routing() if config.moe is not None and torch.is_grad_enabled() else None
    how: dict[str, Any] = {"targets": batch.targets, "trained": batch.trained_index, "chunk": chunk, "scale": scale}
    how["softcap"] = config.logit_softcap
    head: Head = partial(cross_entropy_with_z, z_loss=z_loss, **how) if z_loss else partial(cross_entropy_sum, **how)
    found = model(batch.tokens, batch.positions, batch.document_ids, head=head, routing=routing)
    loss_sum, squares = found if z_loss else (found, None)
    metrics = {} if squares is None else {"z_loss": (z_loss * float(squares), float(count))}
    if routing is None or config.moe is None:
        return loss_sum, count, metrics
    loss_sum, count, routed = with_router_losses(loss_sum, count, routing, config.moe)
    return loss_sum, count, metrics | routed


def with_router_losses(
    loss_sum: Tensor, count: int, routing: Routing, moe: MoEConfig
) -> tuple[Tensor, int, dict[str, tuple[float, float]]]:
    """The routers' own losses in the gradient, not in the value: what is printed stays the language model's loss.

    Each is a mean over layers, weighted by the micro-batch's trained tokens so that one division by the count ends it.
    """
    extra = torch.zeros((), device=loss_sum.device)
    if moe.balance == "aux" and moe.aux_weight:
        extra = extra + moe.aux_weight * torch.stack(routing.balance).mean()
    if moe.z_weight:
        extra = extra + moe.z_weight * torch.stack(routing.z).mean()
    extra = extra * count
    for steering in routing.steering:
        extra = extra + steering * count
    load = torch.stack(routing.load)  # (layers, experts)
    metrics = {
        "router_balance": (float(torch.stack(routing.balance).detach().mean()) * count, float(count)),
        "router_entropy": (float(torch.stack(routing.entropy).mean()) * count, float(count)),
        "expert_load_max": (float(load.max() * load.shape[1]) * count, float(count)),
        "expert_load_min": (float(load.min() * load.shape[1]) * count, float(count)),
    }
    return loss_sum + extra - extra.detach(), count, metrics
