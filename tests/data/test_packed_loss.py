"""Rows that share several documents train exactly what the documents would train alone (pitfall 11)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.data.loader import Loader
from sproutlm.data.shards import ShardWriter, TokenDataset
from sproutlm.model import Transformer
from sproutlm.objectives.next_token import next_token

SEQ_LEN, VOCAB = 48, 61


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> TokenDataset:
    """70 documents of 3 to 30 tokens; in every fifth only the last two tokens are trained, as in a conversation."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 31, size=70)
    tokens = random.integers(2, VOCAB, size=lengths.sum())
    trained = np.ones(len(tokens), dtype=bool)
    for end, length in list(zip(np.cumsum(lengths), lengths, strict=True))[::5]:
        trained[end - length : end - 2] = False
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, 0, np.dtype("<u2"), "test")
    writer.add(tokens, trained, lengths)
    writer.close()
    return TokenDataset(folder)


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(vocab_size=VOCAB, dim=32, n_layers=2, n_heads=2, max_seq_len=SEQ_LEN)
    model = Transformer(config).init_weights(0)
    with torch.no_grad():  # output projections may begin at zero, which would hide any leak through attention
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def loss_and_gradient(model: Transformer, dataset: TokenDataset, **options) -> tuple[float, int, torch.Tensor]:
    """Summed loss over all rows, number of trained tokens, and the mean loss's gradient, flat."""
    loader = Loader(dataset, seq_len=SEQ_LEN, rows_per_step=1, seed=0, pad_id=1, **options)
    model.zero_grad()
    loss, count, _ = next_token(model, loader.rows_batch(np.arange(loader.rows)))
    (loss / count).backward()
    return float(loss.detach()), count, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_packed_loss_equals_unpacked_loss(dataset, model):
    alone, count, gradient = loss_and_gradient(model, dataset, packing="none")
    packed, packed_count, packed_gradient = loss_and_gradient(model, dataset, packing="best_fit")
    masks = [dataset.document(i)[1] for i in range(dataset.n_documents)]
    assert packed_count == count == sum(int(mask[1:].sum()) for mask in masks)  # nothing comes before a first token
    assert abs(packed / count - alone / count) < 1e-6
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_without_the_document_mask_it_differs(dataset, model):
    """What the mask is for, and proof that the test above could fail."""
    alone, count, _ = loss_and_gradient(model, dataset, packing="none")
    contaminated, other_count, _ = loss_and_gradient(model, dataset, packing="best_fit", document_mask=False)
    assert abs(contaminated / other_count - alone / count) > 1e-4


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_what_fills_the_padding_does_not_matter(dataset, model, packing):
    """Padding is neither trained nor seen, whatever id it has; so pad = eos untrains no end (pitfall 1)."""
    batches = []
    for pad_id in (1, int(dataset.document(0)[0][-1])):  # the other is a token that is trained, too
        loader = Loader(dataset, seq_len=SEQ_LEN, rows_per_step=1, seed=0, pad_id=pad_id, packing=packing)
        batches.append(loader.rows_batch(np.arange(loader.rows)))
    one, other = batches
    assert not torch.equal(one.tokens, other.tokens) and torch.equal(one.targets, other.targets)
    with torch.no_grad():
        assert float(next_token(model, one)[0]) == float(next_token(model, other)[0])
