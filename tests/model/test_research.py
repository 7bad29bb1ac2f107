"""The parts behind ``research:``: their formulas, that they begin as nothing, and that they keep documents and rows apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from sproutlm.config.model import ModelConfig, ResearchPart
from sproutlm.config.schema import OptimizerConfig
from sproutlm.data.loader import Batch
from sproutlm.model import KVCache, Transformer
from sproutlm.model.init import resize_vocab
from sproutlm.objectives.next_token import next_token
from sproutlm.plan.count import count
from sproutlm.train.muon import Muon
from sproutlm.train.optim import Optimizers
from sproutlm.train.precision import MasterWeights

PARTS = get_args(ResearchPart)
SHAPE: dict[str, Any] = {
    "family": "research", "vocab_size": 31, "dim": 24, "n_layers": 5, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 32
}  # fmt: skip


def model_of(*parts: str, **changes: Any) -> Transformer:
    """A model with these parts whose every parameter is random."""
    model = Transformer(ModelConfig(**SHAPE | {"research": parts} | changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.4, generator=generator)
    return model


def tokens(rows: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 31, (rows, seq), generator=torch.Generator().manual_seed(seed))


class Entered:
    """What each block was given, and what it gave, in one forward pass."""

    def __init__(self, model: Transformer) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        for layer in model.layers:
            layer.register_forward_hook(self.note)

    def note(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(inputs[0])
        self.outputs.append(output)


# --- the switch -----------------------------------------------------------------------------------------------------------


def test_an_option_that_is_off_leaves_no_parameter_and_all_off_no_module() -> None:
    assert Transformer(ModelConfig(**SHAPE)).research is None
    names = {
        part: {n for n, _ in model_of(part).named_parameters()} - {n for n, _ in model_of().named_parameters()}
        for part in PARTS
    }
    assert names == {
        "value_embeddings": {"research.value_gates", *(f"research.value_tables.{i}.weight" for i in (0, 2, 4))},
        "residual_lambdas": {"research.residual_lambdas"},
        "x0_lambdas": {"research.x0_lambdas"},
        "smear": {"research.smear_lambda", "research.smear_gate"},
        "unet_skips": {"research.skip_weights"},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "qwen3"}, "a qwen3 checkpoint always has research=.*set family: research"),
        ({"family": "gpt2"}, "a gpt2 checkpoint always has research="),
        ({"n_layers": 2}, "unet_skips lead from the first half.*n_layers of 3 or more"),
        ({"research": ("smeer",)}, "smear"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig(**SHAPE | {"research": ("unet_skips",)} | changes)


def test_the_order_in_which_parts_are_named_does_not_matter() -> None:
    one, other = (ModelConfig(**SHAPE | {"research": parts}) for parts in (PARTS, (*PARTS[::-1], PARTS[2])))
    assert one == other and one.research == PARTS


# --- the formulas ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_part_together_begins_as_the_model_without_them() -> None:
    x = tokens(2, 9)
    plain, whole = (Transformer(ModelConfig(**SHAPE | {"research": p})).init_weights(3) for p in ((), PARTS))
    assert torch.equal(plain(x), whole(x))
    assert all(torch.equal(p, whole.get_parameter(n)) for n, p in plain.named_parameters())
    for part in PARTS:  # and with random weights each makes a difference
        model = model_of(part)
        switched_off = Transformer(ModelConfig(**SHAPE)).eval()
        switched_off.load_state_dict({n: p for n, p in model.state_dict().items() if not n.startswith("research.")})
        assert (model(x) - switched_off(x)).abs().max() > 1e-3, part


@torch.no_grad()
def test_each_block_reads_lambda_x_plus_mu_x0_after_the_skip_of_its_mirror() -> None:
    model = model_of("residual_lambdas", "x0_lambdas", "unet_skips")
    seen = Entered(model)
    model(x := tokens(2, 7))
    x0, parts = model.embed_tokens(x), model.research
    assert parts is not None and parts.skip_weights is not None
    mirrors = {3: (0, 1), 4: (1, 0)}  # of five: block 3 reads block 1, block 4 reads block 0, block 2 has no mirror
    for i in range(5):
        expected = x0 if i == 0 else seen.outputs[i - 1]
        if i in mirrors:
            weight, mirror = mirrors[i]
            expected = expected + parts.skip_weights[weight] * seen.outputs[mirror]
        expected = parts.residual_lambdas[i] * expected + parts.x0_lambdas[i] * x0
        torch.testing.assert_close(seen.inputs[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layers", "mirrors"), [(3, {2: 0}), (4, {3: 0}), (6, {4: 1, 5: 0}), (7, {4: 2, 5: 1, 6: 0})])
def test_skips_lead_to_the_mirror_but_for_the_middle(layers: int, mirrors: dict[int, int]) -> None:
    config = ModelConfig(**SHAPE | {"n_layers": layers, "research": PARTS})
    assert config.skip_from == mirrors
    assert config.value_layers == tuple(i for i in range(layers) if (layers - 1 - i) % 2 == 0)


@torch.no_grad()
def test_smear_adds_a_gated_part_of_the_token_before() -> None:
    model = model_of("smear")
    seen = Entered(model)
    model(x := tokens(2, 6))
    e, parts = model.embed_tokens(x), model.research
    assert parts is not None
    expected = e.clone()
    for t in range(1, 6):
        read = F.rms_norm(e[:, t, :16], (16,), eps=1e-6)
        gate = parts.smear_lambda * torch.sigmoid((read * parts.smear_gate).sum(-1, keepdim=True))
        expected[:, t] += gate * e[:, t - 1]
    torch.testing.assert_close(seen.inputs[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_value_embeddings_add_a_gated_row_of_their_table_to_the_values_of_their_layers() -> None:
    """With one visible token attention is its value: v_proj(seen) + 2 sigmoid(gate) * table[token]."""
    model = model_of("value_embeddings")
    token = tokens(3, 1)
    found: list[Tensor] = []
    for layer in model.layers:
        layer.attention_norm.register_forward_hook(lambda module, inputs, out: found.append(out))
        layer.attention.o_proj.register_forward_hook(lambda module, inputs, out: found.append(inputs[0]))
    model(token)
    parts = model.research
    assert parts is not None and parts.value_tables is not None and parts.value_gates is not None
    for i, layer in enumerate(model.layers):
        seen, value = found[2 * i], found[2 * i + 1]
        expected = layer.attention.v_proj(seen)
        if i % 2 == 0:
            gate = 2 * torch.sigmoid(seen[..., :16] @ parts.value_gates[i // 2].T)  # (3, 1, kv_heads = 1)
            expected = expected + gate * parts.value_tables[str(i)](token)
        torch.testing.assert_close(value, expected.repeat(1, 1, 2), rtol=1e-5, atol=1e-5)


# --- documents and caches (sprout verify model has more) ------------------------------------------------------------------


@torch.no_grad()
def test_smear_ends_at_a_documents_border_even_where_positions_do_not_say_so() -> None:
    model = model_of("smear", n_layers=3)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]])
    x = tokens(1, 6)
    changed = x.clone()
    changed[0, 2] = (x[0, 2] + 1) % 31  # the last token before the border
    assert torch.equal(model(x, None, ids)[0, 3:], model(changed, None, ids)[0, 3:])
    assert not torch.equal(model(x)[0, 3:], model(changed)[0, 3:])


@torch.no_grad()
def test_a_cache_cut_back_and_one_with_fewer_rows_know_the_token_before() -> None:
    """pitfall 19: what a conversation shares with its last turn is kept, the rest run anew; finished rows leave."""
    model = model_of(*PARTS)
    old, new = tokens(1, 8, seed=1), tokens(1, 8, seed=2)
    cache = KVCache(model.config, 1, 16)
    model(old, cache=cache)
    cache.length = 5
    logits = model(new[:, 5:], cache=cache)
    torch.testing.assert_close(logits, model(torch.cat([old[:, :5], new[:, 5:]], 1))[:, 5:], rtol=1e-5, atol=2e-5)

    rows = tokens(3, 8, seed=4)
    cache = KVCache(model.config, 3, 16)
    model(rows[:, :5], cache=cache)
    cache.keep(torch.tensor([2]))
    torch.testing.assert_close(model(rows[2:, 5:], cache=cache), model(rows[2:])[:, 5:], rtol=1e-5, atol=2e-5)
    with pytest.raises(ValueError, match="KV cache holds 16 tokens"):
        model(tokens(1, 9), cache=cache)


def test_a_cache_notes_tokens_only_for_smear() -> None:
    assert KVCache(ModelConfig(**SHAPE), 1, 4).tokens is None


# --- training -------------------------------------------------------------------------------------------------------------


def masters_of(model: Transformer) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def test_tables_are_updated_as_embeddings_and_scalars_and_gates_as_scalars() -> None:
    config = OptimizerConfig(name="muon", lr=0.1, embedding_lr=0.2, scalar_lr=0.3)
    optimizers = Optimizers(config, masters := masters_of(model_of(*PARTS)), torch.float32)
    names = {id(p): n for n, p in masters.items()}
    rates = {
        names[id(p)]: ("muon" if isinstance(o, Muon) else "adamw", g["peak"])
        for o in optimizers.optimizers
        for g in o.param_groups
        for p in g["params"]
    }
    for name, rate in rates.items():
        if name.startswith("research."):
            assert rate == ("adamw", 0.2 if ".value_tables." in name else 0.3), name


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss_moves_every_part_and_survives_being_stored(
    compute: torch.dtype, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = Transformer(ModelConfig(**SHAPE | {"research": PARTS})).init_weights(1)
    weights = MasterWeights(model, compute)
    start = {n: m.detach().clone() for n, m in weights.masters.items()}
    optimizers = Optimizers(OptimizerConfig(), weights.masters, compute)
    x = tokens(8, 16)
    targets = (x + x.roll(1, 1)) % 31  # each follows from the token and the one before it
    ids = torch.arange(16).expand(8, 16) // 8
    batch = Batch(x, targets, torch.arange(16).expand(8, 16) % 8, ids, torch.arange(8))
    losses = []
    for step in range(12):
        loss, trained, _ = next_token(model, batch)
        losses.append(loss.item() / trained)
        loss.backward()
        weights.collect_gradients()
        torch._foreach_div_([m.grad for m in weights.masters.values()], float(trained))
        optimizers.step(1.0, step / 12)
        for master in weights.masters.values():
            master.grad = None
        weights.publish()
    assert losses[-1] < losses[0] - 0.5, losses
    moved = {n for n, m in weights.masters.items() if not torch.equal(m, start[n])}
    assert moved == set(start)

    save_file({n: m.detach().contiguous() for n, m in weights.masters.items()}, tmp_path / "m.safetensors")
    again = Transformer(model.config)
    again.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(again.to(compute)(x, batch.positions, ids), model(x, batch.positions, ids))


# --- sizes ----------------------------------------------------------------------------------------------------------------


def test_the_plan_counts_tables_and_gates() -> None:
    config, plain = ModelConfig(**SHAPE | {"research": PARTS}), ModelConfig(**SHAPE)
    tables, gates, scalars = 3 * 31 * 12, 3 * 1 * 16, 5 + 5 + 2 + 1 + 16
    assert count(config).total == sum(p.numel() for p in Transformer(config).parameters())
    assert count(config).total - count(plain).total == tables + gates + scalars
    assert count(config).embedding - count(plain).embedding == tables


def test_new_tokens_have_rows_in_every_table() -> None:
    model = Transformer(ModelConfig(**SHAPE | {"research": PARTS})).init_weights(1)
    state, config = resize_vocab(dict(model.state_dict()), model.config, {31: [3, 5]})
    grown = Transformer(config)
    grown.load_state_dict(state)
    for name in ("embed_tokens.weight", "research.value_tables.2.weight"):
        row = model.get_parameter(name)[[3, 5]].mean(0)
        torch.testing.assert_close(grown.get_parameter(name)[31], row)
