"""Bits per byte: sums divided once, over trained targets, in bytes of text."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sproutlm.data.loader import Batch
from sproutlm.errors import DataError
from sproutlm.eval.bits_per_byte import bits_per_byte, make_evaluator
from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer


def batch_of(tokenizer: Tokenizer, *texts: str) -> Batch:
    """One framed text a row, padded on the right."""
    rows = [[tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    targets = torch.full_like(tokens, -100)
    for i, row in enumerate(rows):
        targets[i, : len(row) - 1] = tokens[i, 1 : len(row)]
    return Batch(tokens, targets, torch.arange(width).expand(len(rows), -1), None, torch.arange(len(rows)))


class Rows:
    """A loader of ready-made rows."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def rows_batch(self, rows: object) -> Batch:
        i = torch.as_tensor(rows)
        b = self.batch
        return Batch(b.tokens[i], b.targets[i], b.positions[i], None, i)


TEXTS = ("你好，世界！", "Hello", "W")


def test_bits_are_those_of_the_plain_formula(model: Transformer, tokenizer: Tokenizer) -> None:
    batch = batch_of(tokenizer, *TEXTS)
    figures = bits_per_byte(model, [batch], torch.from_numpy(tokenizer.token_bytes()))
    with torch.no_grad():
        logits = model.eval()(batch.tokens).double()
    nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum").item()
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert figures["bytes"] == n_bytes  # the end of each text costs bits and stands for no byte
    assert figures["tokens"] == int((batch.targets != -100).sum())
    assert figures["bits_per_byte"] == pytest.approx(nll / math.log(2) / n_bytes, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(nll / figures["tokens"]), rel=1e-6)


def test_uneven_batches_are_summed_and_divided_once(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 22: a mean of means would weigh the row of one letter like the long one."""
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    whole = bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], token_bytes)
    parts = bits_per_byte(model, [batch_of(tokenizer, text) for text in TEXTS], token_bytes)
    assert parts["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-6)
    each = [bits_per_byte(model, [batch_of(tokenizer, t)], token_bytes)["bits_per_byte"] for t in TEXTS]
    assert abs(sum(each) / 3 - whole["bits_per_byte"]) > 0.01  # the wrong way would be seen


def test_the_evaluator_leaves_training_as_it_was(model: Transformer, tokenizer: Tokenizer) -> None:
    model.train()
    loader = Rows(batch_of(tokenizer, *TEXTS))
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    state = torch.get_rng_state()
    first = make_evaluator(loader, token_bytes, 3, 2)(model, 0)  # type: ignore[arg-type]
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert first == make_evaluator(loader, token_bytes, 3, 2)(model, 10)  # type: ignore[arg-type]  # dropout is off
    assert first.keys() == {"val_loss", "val_bpb"}
    one_by_one = make_evaluator(loader, token_bytes, 3, 1)(model, 0)  # type: ignore[arg-type]
    assert one_by_one["val_bpb"] == pytest.approx(first["val_bpb"], rel=1e-6)
    model(loader.batch.tokens).sum().backward()  # nothing of inference mode stays behind
    assert model.embed_tokens.weight.grad is not None


def test_only_the_first_rows_are_read(model: Transformer, tokenizer: Tokenizer) -> None:
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    two = make_evaluator(Rows(batch_of(tokenizer, *TEXTS)), token_bytes, 2, 8)(model, 0)  # type: ignore[arg-type]
    assert two["val_bpb"] == pytest.approx(
        bits_per_byte(model, [batch_of(tokenizer, *TEXTS[:2])], token_bytes)["bits_per_byte"], rel=1e-6
    )


def test_autocast_around_it_changes_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    plain = bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], token_bytes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], token_bytes) == plain


def test_rows_without_a_trained_token_are_a_sentence_and_not_nan(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 23, in validation."""
    batch = batch_of(tokenizer, "Hello")
    batch.targets.fill_(-100)
    with pytest.raises(DataError, match="0 trained tokens.*nothing to measure"):
        bits_per_byte(model, [batch], torch.from_numpy(tokenizer.token_bytes()))
