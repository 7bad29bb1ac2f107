"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from ..data.loader import Batch, Loader
from ..distributed.ranks import ALONE, Ranks
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


@torch.no_grad()  # not inference mode, whose tensors FSDP2 could not train with afterwards
def bits_per_byte(
    model: Transformer, batches: Iterable[Batch], text_bytes: TextBytes, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Loss over all trained targets, summed first, over ``ranks`` too, and divided once.

    ``batches`` are this rank's whole rows. ``text_bytes`` counts the bytes of text that the targets stand for; control tokens stand for none, and cost all the same.
    Returns nll_sum (nats), tokens, bytes, bits_per_byte = nll_sum / ln 2 / bytes, loss = nll_sum / tokens (nats), and
    perplexity = exp(loss). DataError where nothing is trained. The model's mode is put back; nothing random is drawn.
    """
    device = model.embed_tokens.weight.device
    nll_sum, tokens, n_bytes = 0.0, 0.0, 0.0
    with evaluating(model), torch.autocast(device.type, enabled=False):
        for whole in batches:
            batch = whole.row_part(*model.row_part)
            targets = batch.targets.to(device)
            document_ids = None if batch.document_ids is None else batch.document_ids.to(device)
            head = partial(token_nll, targets=targets, softcap=model.config.logit_softcap)
            nll = model(batch.tokens.to(device), batch.positions.to(device), document_ids, head=head)
            nll_sum += nll.double().sum().item()  # float64: a float32 sum drifts over millions of tokens
            tokens += int((batch.targets != IGNORE).sum())
            n_bytes += text_bytes.of(whole) if model.row_part[0] == 0 else 0
    nll_sum, tokens, n_bytes = ranks.sum(nll_sum, tokens, n_bytes)
    if not tokens or not n_bytes:
        raise DataError(
            f"the validation rows hold {tokens:.0f} trained tokens with {n_bytes:.0f} bytes of text, so there is nothing to "
            "measure; give held-out rows with text in them"
        )
    loss = nll_sum / tokens
    return {
        "nll_sum": nll_sum,
        "tokens": int(tokens),
        "bytes": int(n_bytes),
        "bits_per_byte": nll_sum / math.log(2) / n_bytes,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
    }


def batches_of(loader: Loader, rows: int, micro_batch: int, rank: int = 0, n: int = 1) -> Iterator[Batch]:
    """The first ``rows`` packed rows, ``micro_batch`` at a time: the same ones at every call. Each of ``n`` ranks gets every n-th
    batch, and all as many: one that has none left gets rows in which nothing counts."""
    starts = range(0, rows, max(micro_batch, 1))
    for turn in range(-(-len(starts) // n)):
        number = turn * n + rank
        start = starts[min(number, len(starts) - 1)]
        batch = loader.rows_batch(np.arange(start, min(start + max(micro_batch, 1), rows)))
        yield batch if number < len(starts) else batch.without_targets()


def make_evaluator(
    loader: Loader, text_bytes: TextBytes, rows: int, micro_batch: int, ranks: Ranks = ALONE
) -> Callable[[Transformer, int], dict[str, float]]:
    """An evaluator for the trainer: ``val_loss`` (nats per token) and ``val_bpb`` over the first ``rows`` packed rows."""

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        batches = batches_of(loader, rows, micro_batch, ranks.data_rank, ranks.data_size)
        figures = bits_per_byte(model, batches, text_bytes, ranks)
        return {"val_loss": figures["loss"], "val_bpb": figures["bits_per_byte"]}

    return evaluate
