"""Next-token prediction: pretraining and SFT differ only in which targets their data marks as trained."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..config.model import MoEConfig
from ..data.loader import Batch
from ..model import Transformer
from ..model.moe import Routing
from ..train.loss import cross_entropy_sum


def next_token(model: Transformer, batch: Batch) -> tuple[Tensor, int, dict[str, tuple[float, float]]]:
    """Sum of token losses (nats) and number of trained targets; the loss runs inside ``forward``, as its head."""
    config, count = model.config, batch.trained
    head = partial(cross_entropy_sum, targets=batch.targets, softcap=config.logit_softcap)
    routing = Routing() if config.moe is not None and torch.is_grad_enabled() else None
    loss_sum = model(batch.tokens, batch.positions, batch.document_ids, head=head, routing=routing)
    if routing is None or config.moe is None:
        return loss_sum, count, {}
    return with_router_losses(loss_sum, count, routing, config.moe)


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
