"""Bits per byte: sums divided once, over trained targets, in bytes of text."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sproutlm.data.loader import Batch
from sproutlm.errors import DataError
from sproutlm.eval.bits_per_byte import TextBytes, bits_per_byte, make_evaluator
from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer
from sproutlm.tokenizer.spm import from_sentencepiece

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from tokenizer_examples import sentencepiece_model  # noqa: E402


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
    figures = bits_per_byte(model, [batch], TextBytes(tokenizer))
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
    text_bytes = TextBytes(tokenizer)
    whole = bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], text_bytes)
    parts = bits_per_byte(model, [batch_of(tokenizer, text) for text in TEXTS], text_bytes)
    assert parts["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-6)
    each = [bits_per_byte(model, [batch_of(tokenizer, t)], text_bytes)["bits_per_byte"] for t in TEXTS]
    assert abs(sum(each) / 3 - whole["bits_per_byte"]) > 0.01  # the wrong way would be seen


def test_the_evaluator_leaves_training_as_it_was(model: Transformer, tokenizer: Tokenizer) -> None:
    model.train()
    loader = Rows(batch_of(tokenizer, *TEXTS))
    text_bytes = TextBytes(tokenizer)
    state = torch.get_rng_state()
    first = make_evaluator(loader, text_bytes, 3, 2)(model, 0)  # type: ignore[arg-type]
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert first == make_evaluator(loader, text_bytes, 3, 2)(model, 10)  # type: ignore[arg-type]  # dropout is off
    assert first.keys() == {"val_loss", "val_bpb"}
    one_by_one = make_evaluator(loader, text_bytes, 3, 1)(model, 0)  # type: ignore[arg-type]
    assert one_by_one["val_bpb"] == pytest.approx(first["val_bpb"], rel=1e-6)
    model(loader.batch.tokens).sum().backward()  # nothing of inference mode stays behind
    assert model.embed_tokens.weight.grad is not None


def test_only_the_first_rows_are_read(model: Transformer, tokenizer: Tokenizer) -> None:
    text_bytes = TextBytes(tokenizer)
    two = make_evaluator(Rows(batch_of(tokenizer, *TEXTS)), text_bytes, 2, 8)(model, 0)  # type: ignore[arg-type]
    assert two["val_bpb"] == pytest.approx(
        bits_per_byte(model, [batch_of(tokenizer, *TEXTS[:2])], text_bytes)["bits_per_byte"], rel=1e-6
    )


def test_autocast_around_it_changes_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    text_bytes = TextBytes(tokenizer)
    plain = bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], text_bytes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bits_per_byte(model, [batch_of(tokenizer, *TEXTS)], text_bytes) == plain


def test_rows_without_a_trained_token_are_a_sentence_and_not_nan(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 23, in validation."""
    batch = batch_of(tokenizer, "Hello")
    batch.targets.fill_(-100)
    with pytest.raises(DataError, match="0 trained tokens.*nothing to measure"):
        bits_per_byte(model, [batch], TextBytes(tokenizer))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_blank_that_the_tokenizer_put_there_is_no_byte_of_the_text(model: Transformer, kind: str) -> None:
    """SentencePiece models write a blank before each text; texts that begin with one of their own keep it."""
    texts = ["the fox", " the fox", "春眠不觉晓", "\n", ""]
    for prefix in (True, False):
        tokenizer = from_sentencepiece(sentencepiece_model(kind, add_dummy_prefix=prefix))
        assert (tokenizer.dummy_blank != "none") is prefix
        batch = batch_of(tokenizer, *texts)
        assert TextBytes(tokenizer).of(batch) == sum(len(text.encode()) for text in texts)
        # A document that was cut goes on without a blank of the tokenizer's.
        ids = tokenizer.encode("fox fox")[1:]
        cut = torch.tensor([[*tokenizer.encode("the")[-1:], *ids]])
        targets = torch.cat([cut[:, 1:], torch.full((1, 1), -100)], 1)
        rest = Batch(cut, targets, torch.arange(cut.shape[1])[None], None, torch.arange(1))
        assert TextBytes(tokenizer).of(rest) == sum(len(tokenizer.piece(id_)) for id_ in ids)


def test_a_blank_only_at_the_start_of_a_document_is_no_byte_of_the_text(tokenizer: Tokenizer) -> None:
    data = tokenizer.backend_json
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    data["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    data["model"]["vocab"] = {**{c: i for c, i in tokenizer.control_tokens.items()}, "▁": 100, "a": 101, "▁a": 102}
    data["model"]["merges"] = [["▁", "a"]]
    first = Tokenizer(json.dumps(data), tokenizer.config)
    assert first.dummy_blank == "first"
    assert TextBytes(first).of(batch_of(first, "a", "a a")) == 1 + 3
    marked = batch_of(first, "a")
    later = Batch(marked.tokens, marked.targets, marked.positions + 5, None, marked.row_ids)
    assert (
        TextBytes(first).of(later) == 2
    )  # after an end token in the midst of a document a blank is written, not added
