"""The decoder's promises: residual stream, initial weights, documents kept apart, a head that a loss can replace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer

SHAPE: dict[str, Any] = {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}


def random_model(seed: int = 0, **changes: Any) -> Transformer:
    """A model whose every parameter is random and none is zero (the initial one is the identity in its blocks)."""
    model = Transformer(ModelConfig(**{**SHAPE, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def tokens(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (batch, seq), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_block_with_zeroed_output_projections_is_the_identity(family: str) -> None:
    """pitfall 16: no residual stream, or the norm written over it."""
    model = random_model(family=family)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    hidden = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, output: hidden.append((inputs[0], output)))
    model(tokens(2, 7))
    assert len(hidden) == 2
    for before, after in hidden:
        assert torch.equal(before, after)


def test_block_adds_to_what_it_was_given() -> None:
    """pitfall 16, the other way round: with weights in place the block changes its input."""
    model = random_model()
    seen = {}
    model.layers[0].register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))
    model(tokens(1, 5))
    assert (seen["after"] - seen["before"]).abs().mean() > 0.05


def test_initial_blocks_are_the_identity_and_other_matrices_keep_their_scale() -> None:
    """pitfall 17: scaled or zeroed is what writes into the residual stream, and nothing else."""
    model = Transformer(ModelConfig(**{**SHAPE, "dim": 128, "ffn_dim": 256, "tie_embeddings": False})).init_weights(3)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.count_nonzero() == 0, name
        elif name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            std = 0.02 if name.startswith(("embed_tokens", "lm_head")) else parameter.shape[-1] ** -0.5
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * std, name


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    """pitfall 17: not on the order of construction, the size of other parts, or the global random state."""
    small = dict(Transformer(ModelConfig(**SHAPE)).init_weights(5).named_parameters())
    torch.manual_seed(99)
    deep = Transformer(ModelConfig(**{**SHAPE, "n_layers": 4, "tie_embeddings": False}))
    state = torch.random.get_rng_state()
    deep.init_weights(5)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, parameter in deep.named_parameters():
        if name in small:
            assert torch.equal(parameter, small[name]), name
    # A stream that all parameters share would still give the same beginning: draw more before the layers.
    wide = Transformer(ModelConfig(**{**SHAPE, "vocab_size": 2 * SHAPE["vocab_size"]})).init_weights(5)
    for name, parameter in wide.layers.named_parameters():
        assert torch.equal(parameter, small[f"layers.{name}"]), name
    q0, q1 = (deep.layers[i].attention.q_proj.weight for i in (0, 1))
    assert not torch.equal(q0, q1)
    other = Transformer(ModelConfig(**SHAPE)).init_weights(6)
    assert not torch.equal(other.embed_tokens.weight, small["embed_tokens.weight"])


def test_model_built_on_meta_equals_one_built_directly() -> None:
    """pitfall 18: rotary tables or other buffers left uninitialised by meta-device construction."""
    config = ModelConfig(**SHAPE)
    direct = Transformer(config).init_weights(1)
    with torch.device("meta"):
        late = Transformer(config)
    late.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*late.parameters(), *late.buffers()]:
            tensor.fill_(float("nan"))  # to_empty may hand out zeros; nothing of it may survive
    late.init_weights(1)
    assert {n: p.tolist() for n, p in late.named_parameters()} == {n: p.tolist() for n, p in direct.named_parameters()}
    assert torch.equal(late(tokens(2, 9)), direct(tokens(2, 9)))


def test_parameter_names_are_those_that_checkpoints_hold() -> None:
    block = [
        *("attention_norm.weight", "attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"),
        *("attention.o_proj.weight", "attention.q_norm.weight", "attention.k_norm.weight", "mlp_norm.weight"),
        *("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
    ]
    expected = {f"layers.{i}.{name}" for i in (0, 1) for name in block} | {"embed_tokens.weight", "norm.weight"}
    assert set(Transformer(ModelConfig(**SHAPE)).state_dict()) == expected
    untied = Transformer(ModelConfig(**{**SHAPE, "tie_embeddings": False}))
    assert set(untied.state_dict()) == expected | {"lm_head.weight"}


def test_no_token_sees_a_later_one() -> None:
    model, x = random_model(), tokens(1, 9)
    changed = x.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % SHAPE["vocab_size"]
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[0, :6], after[0, :6], rtol=0, atol=1e-6)
    assert (before[0, 6:] - after[0, 6:]).abs().max() > 1e-2


def packed(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Positions and document ids of documents laid one after another, each (1, seq)."""
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return positions, ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_give_the_loss_of_documents_alone(dtype: torch.dtype) -> None:
    """pitfall 11: packing without a document mask contaminates; the packed loss is the unpacked one to 1e-6."""
    model, lengths = random_model().to(dtype), [5, 1, 7, 3]
    x = tokens(1, sum(lengths))
    positions, ids = packed(lengths)
    together = model(x, positions, ids)[0].float()
    alone = torch.cat([model(piece)[0].float() for piece in x.split(lengths, dim=1)])
    exact = dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.1)
    if exact:
        losses = [F.cross_entropy(logits, x[0], reduction="mean") for logits in (together, alone)]
        assert abs(losses[0] - losses[1]) < 1e-6
    assert (model(x)[0].float() - alone).abs().max() > 0.05  # without the mask they are not the same


def test_changing_one_document_changes_nothing_in_its_neighbours() -> None:
    """pitfall 11, bit for bit: the documents share rows, and nothing else."""
    model = random_model()
    positions, ids = packed([4, 6, 3])
    x = tokens(1, 13)
    changed = x.clone()
    changed[0, :4] = (changed[0, :4] + 7) % SHAPE["vocab_size"]
    before, after = model(x, positions, ids), model(changed, positions, ids)
    assert torch.equal(before[0, 4:], after[0, 4:])
    assert not torch.equal(before[0, :4], after[0, :4])


def test_padding_documents_stay_finite() -> None:
    """Padding carries the id -1 and sees itself: a softmax over nothing would be NaN."""
    model = random_model()
    ids = torch.tensor([[0, 0, 0, -1, -1], [-1] * 5])
    assert model(tokens(2, 5), document_ids=ids).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_head_replaces_the_logits(tied: bool) -> None:
    """A loss inside ``forward`` sees the hidden states and the output weight; full logits never exist."""
    model, x = random_model(tie_embeddings=tied), tokens(2, 8)
    largest = 0

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        nonlocal largest
        assert hidden.shape == (2, 8, 32)
        assert weight is (model.embed_tokens.weight if tied else model.lm_head.weight)
        sums = []
        for piece in hidden.flatten(0, 1).split(4):  # (4, dim): a quarter of the rows at a time
            logits = F.linear(piece, weight)
            largest = max(largest, logits.numel())
            sums.append(logits.logsumexp(-1).sum())
        return torch.stack(sums).sum()

    total = model(x, head=head)
    torch.testing.assert_close(total, model(x).logsumexp(-1).sum())
    assert largest == 4 * SHAPE["vocab_size"]
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logits_have_the_documented_shape_and_dropout_is_off_in_eval() -> None:
    model = random_model(dropout=0.5)
    first, second = model(tokens(2, 6)), model(tokens(2, 6))
    assert first.shape == (2, 6, SHAPE["vocab_size"])
    assert torch.equal(first, second)
    model.train()
    assert not torch.equal(model(tokens(2, 6)), first)


def test_vocabulary_must_be_known_before_a_model_is_built() -> None:
    with pytest.raises(ValueError, match="vocab_size is 0"):
        Transformer(ModelConfig())
