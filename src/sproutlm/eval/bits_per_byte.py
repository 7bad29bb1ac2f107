"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.loader import Batch, Loader
from ..errors import DataError
from ..infer.engine import evaluating
from ..model import Transformer
from ..train.loss import IGNORE, token_nll


@torch.inference_mode()
def bits_per_byte(model: Transformer, batches: Iterable[Batch], token_bytes: Tensor) -> dict[str, float]:
    """Loss over all trained targets, summed first and divided once.

    ``token_bytes`` (vocab,) int64: UTF-8 bytes of each token, 0 for control tokens, whose cost counts all the same.
    Returns nll_sum (nats), tokens, bytes, bits_per_byte = nll_sum / ln 2 / bytes, loss = nll_sum / tokens (nats), and
    perplexity = exp(loss). DataError where nothing is trained. The model's mode is put back; nothing random is drawn.
    """
    device = model.embed_tokens.weight.device
    nll_sum, tokens, n_bytes = 0.0, 0, 0
    with evaluating(model), torch.autocast(device.type, enabled=False):
        for batch in batches:
            targets = batch.targets.to(device)
            document_ids = None if batch.document_ids is None else batch.document_ids.to(device)
            head = partial(token_nll, targets=targets, softcap=model.config.logit_softcap)
            nll = model(batch.tokens.to(device), batch.positions.to(device), document_ids, head=head)
            nll_sum += nll.double().sum().item()  # float64: a float32 sum drifts over millions of tokens
            scored = batch.targets[batch.targets != IGNORE]
            tokens += scored.numel()
            n_bytes += int(token_bytes[scored.cpu()].sum())
    if not tokens or not n_bytes:
        raise DataError(
            f"the validation rows hold {tokens} trained tokens with {n_bytes} bytes of text, so there is nothing to "
            "measure; give held-out rows with text in them"
        )
    loss = nll_sum / tokens
    return {
        "nll_sum": nll_sum,
        "tokens": tokens,
        "bytes": n_bytes,
        "bits_per_byte": nll_sum / math.log(2) / n_bytes,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
    }


def batches_of(loader: Loader, rows: int, micro_batch: int) -> Iterator[Batch]:
    """The first ``rows`` packed rows, ``micro_batch`` at a time: the same ones at every call."""
    for start in range(0, rows, max(micro_batch, 1)):
        yield loader.rows_batch(np.arange(start, min(start + max(micro_batch, 1), rows)))


def make_evaluator(
    loader: Loader, token_bytes: Tensor, rows: int, micro_batch: int
) -> Callable[[Transformer, int], dict[str, float]]:
    """An evaluator for the trainer: ``val_loss`` (nats per token) and ``val_bpb`` over the first ``rows`` packed rows."""

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        figures = bits_per_byte(model, batches_of(loader, rows, micro_batch), token_bytes)
        return {"val_loss": figures["loss"], "val_bpb": figures["bits_per_byte"]}

    return evaluate
