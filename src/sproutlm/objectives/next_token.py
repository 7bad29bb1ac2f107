"""Next-token prediction: pretraining and SFT differ only in which targets their data marks as trained."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..data.loader import Batch
from ..model import Transformer
from ..train.loss import cross_entropy_sum


def next_token(model: Transformer, batch: Batch) -> tuple[Tensor, int, dict[str, tuple[float, float]]]:
    """Sum of token losses (nats) and number of trained targets; the loss runs inside ``forward``, as its head."""
    head = partial(cross_entropy_sum, targets=batch.targets, softcap=model.config.logit_softcap)
    loss_sum = model(batch.tokens, batch.positions, batch.document_ids, head=head)
    return loss_sum, batch.trained, {}
