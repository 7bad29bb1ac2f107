"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from ..data.loader import Batch, Loader
from ..errors import DataError
from ..infer.engine import evaluating
from ..model import Transformer
from ..tokenizer.tokenizer import Tokenizer
from ..train.loss import IGNORE, token_nll


class TextBytes:
    """Counts the UTF-8 bytes of text in a batch's targets.

    A tokenizer may put a blank of its own before a text (``Tokenizer.dummy_blank``); no one wrote it, so that it does not
    count. ``vocab_size``: ids of the model, which may have spare rows beyond its tokenizer's; they stand for no bytes.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
        size = max(vocab_size, tokenizer.vocab_size)
        self._bytes = torch.zeros(size, dtype=torch.int64)  # (vocab,)
        self._bytes[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes())
        self._dummy = tokenizer.dummy_blank
        self._eos_id = tokenizer.eos_id
        self._control = torch.zeros(size, dtype=torch.bool)
        self._blank = torch.zeros(size, dtype=torch.bool)  # ids whose text begins with a blank
        if self._dummy != "none":
            self._control[sorted(tokenizer.control_tokens.values())] = True
            self._blank[[i for i in range(tokenizer.vocab_size) if tokenizer.piece(i).startswith(b" ")]] = True

    def of(self, batch: Batch) -> int:
        """Bytes of all trained targets of a batch."""
        targets, before = batch.targets.cpu(), batch.tokens.cpu()  # (rows, seq); the target comes after ``before``
        scored = targets != IGNORE
        n_bytes = int(self._bytes[targets[scored]].sum())
        if self._dummy == "none":
            return n_bytes
        # "first": only the text of a document, which the end token opens; what follows a cut or a prompt has no such blank.
        fresh = self._control[before] if self._dummy == "each" else before == self._eos_id
        if self._dummy == "first":
            fresh &= batch.positions.cpu() == 0
        return n_bytes - int(self._blank[targets[scored & fresh]].sum())


@torch.inference_mode()
def bits_per_byte(model: Transformer, batches: Iterable[Batch], text_bytes: TextBytes) -> dict[str, float]:
    """Loss over all trained targets, summed first and divided once.

    ``text_bytes`` counts the bytes of text that the targets stand for; control tokens stand for none, and cost all the same.
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
            tokens += int((batch.targets != IGNORE).sum())
            n_bytes += text_bytes.of(batch)
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
    loader: Loader, text_bytes: TextBytes, rows: int, micro_batch: int
) -> Callable[[Transformer, int], dict[str, float]]:
    """An evaluator for the trainer: ``val_loss`` (nats per token) and ``val_bpb`` over the first ``rows`` packed rows."""

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        figures = bits_per_byte(model, batches_of(loader, rows, micro_batch), text_bytes)
        return {"val_loss": figures["loss"], "val_bpb": figures["bits_per_byte"]}

    return evaluate
