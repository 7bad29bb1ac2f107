"""Next-token prediction as (sum, count), with its loss inside ``forward``."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import Recipe
from sproutlm.data.loader import IGNORE, Batch
from sproutlm.model import Transformer
from sproutlm.objectives.next_token import next_token
from sproutlm.pipeline.train import objective_of
from sproutlm.train import loss as loss_module


def batch_and_model() -> tuple[Batch, Transformer]:
    """Two packed rows: two documents in the first, one and padding in the second; some targets not trained."""
    config = ModelConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=16)
    model = Transformer(config).init_weights(1)
    with torch.no_grad():  # the residual writers start at zero: fill them, so that attention matters
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    tokens = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, [2, 7]] = IGNORE  # the ends of the two documents
    targets[1, [0, 1, 5, 6, 7]] = IGNORE  # a prompt, and padding
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 0]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, -1, -1]])
    return Batch(tokens, targets, positions, documents, torch.arange(2)), model


def test_the_sum_over_trained_targets_and_their_number() -> None:
    batch, model = batch_and_model()
    loss, count, metrics = next_token(model, batch)
    logits = model(batch.tokens, batch.positions, batch.document_ids)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert count == 9 and metrics == {}


def test_a_packed_row_costs_what_its_documents_cost_alone() -> None:
    """Pitfall 11, for the objective: neither the neighbour nor the padding changes the loss."""
    batch, model = batch_and_model()
    total, _, _ = next_token(model, batch)
    alone = 0.0
    for row, cut in ((0, slice(0, 3)), (0, slice(3, 8)), (1, slice(0, 6))):
        tokens, targets = batch.tokens[row, cut][None], batch.targets[row, cut][None]
        positions = torch.arange(tokens.shape[1])[None]
        loss, _, _ = next_token(model, Batch(tokens, targets, positions, None, torch.zeros(1, dtype=torch.int64)))
        alone += loss.item()
    assert abs(total.item() - alone) < 1e-5 * alone


def test_z_loss_changes_the_gradient_and_no_figure_that_is_printed() -> None:
    """Sum, then divide: the parts of a batch have together the sum, the count, the metric and the gradient of the whole."""
    batch, model = batch_and_model()
    plain, count, _ = next_token(model, batch)
    loss, same_count, metrics = next_token(model, batch, z_loss=0.1)
    assert loss.item() == plain.item() and same_count == count
    logits = model(batch.tokens, batch.positions, batch.document_ids)
    squares = logits.logsumexp(-1).square()[batch.targets != IGNORE].sum()
    assert metrics["z_loss"][1] == count and abs(metrics["z_loss"][0] / (0.1 * squares.item()) - 1) < 1e-5

    weights = list(model.parameters())
    whole = torch.autograd.grad(loss, weights)
    for got, want in zip(whole, torch.autograd.grad(plain + 0.1 * squares, weights), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    parts = [next_token(model, part, z_loss=0.1) for part in batch.split(1)]
    assert sum(one[1] for one in parts) == count
    assert abs(sum(one[2]["z_loss"][0] for one in parts) / metrics["z_loss"][0] - 1) < 1e-5
    for got, want in zip(torch.autograd.grad(sum(one[0] for one in parts), weights), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_weight_of_a_recipe_reaches_the_loss_and_0_changes_nothing() -> None:
    batch, model = batch_and_model()
    fields = {"name": "one", "data": {"train": [{"path": "rows.jsonl"}]}, "model": {"dim": 64}}
    with_z, without = (
        objective_of(Recipe.model_validate(fields | {"train": {"steps": 3} | more})) for more in ({"z_loss": 0.1}, {})
    )
    assert with_z(model, batch)[2] == next_token(model, batch, z_loss=0.1)[2] != {}
    assert torch.equal(without(model, batch)[0], next_token(model, batch)[0]) and without(model, batch)[2] == {}


def test_the_chunk_of_a_recipe_reaches_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loss_module, "_gradient_in_place", lambda logits, *rest: (seen.append(len(logits)) or 0.0, 0.0))
    fields = {"name": "one", "data": {"train": [{"path": "rows.jsonl"}]}, "model": {"dim": 64}}
    batch, model = batch_and_model()
    objective_of(Recipe.model_validate(fields | {"train": {"steps": 3, "loss_chunk": 4}}))(model, batch)
    assert seen == [4, 4, 1]  # of nine trained targets
    with pytest.raises(ValidationError, match="only next_token knows of it"):
        Recipe.model_validate(fields | {"objective": "mine:loss", "train": {"steps": 3, "loss_chunk": 4}})


def test_the_gradient_reaches_every_weight() -> None:
    batch, model = batch_and_model()
    next_token(model, batch)[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_loss_takes_the_place_of_the_head(monkeypatch) -> None:
    """``forward`` is called once, and ends in the loss: where a shard's weights are gathered, logits never exist."""
    batch, model = batch_and_model()
    shapes = []
    model.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(out.shape)))
    next_token(model, batch)
    assert shapes == [()]
