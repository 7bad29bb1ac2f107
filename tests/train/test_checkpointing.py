"""Blocks computed again for the backward pass: the same gradients to the bit, and less kept until then."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sproutlm.config.model import ModelConfig, ResearchPart
from sproutlm.data.loader import Batch
from sproutlm.model import Transformer
from sproutlm.objectives.next_token import next_token
from sproutlm.train.trainer import Trainer

BASE: dict[str, Any] = {
    "vocab_size": 61, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 48, "ffn_dim": 96
}  # fmt: skip
EXPERTS = {"n_experts": 4, "top_k": 2, "expert_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "dropout": {"dropout": 0.2},
    "window": {"family": "mistral", "sliding_window": 8},
    "gpt2": {"family": "gpt2", "n_kv_heads": 4},
    "gemma2": {"family": "gemma2"},
    "experts": {"family": "qwen3_moe", "moe": EXPERTS | {"balance": "aux", "z_weight": 1e-3}},
    "loss-free balance": {"family": "dots1", "moe": EXPERTS | {"balance": "bias", "shared_dim": 32}},
    "research": {"family": "research", "research": get_args(ResearchPart)},
}
HOW = ("blocks", "selective")


def model_of(shape: dict[str, Any]) -> Transformer:
    """With weights that leave no gradient at zero."""
    model = Transformer(ModelConfig(**BASE | shape)).init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.train()


def packed(vocab: int, rows: int = 2, seq: int = 48) -> Batch:
    tokens = torch.randint(0, vocab, (rows, seq), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(seq).expand(rows, seq)
    return Batch(tokens, tokens.roll(-1, 1), positions % 16, positions // 16, torch.arange(rows))


def step(model: Transformer, how: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor | None], Any]:
    model.checkpointing = how
    torch.manual_seed(7)
    loss, count, metrics = next_token(model, packed(model.config.vocab_size), z_loss=1e-3, chunk=20)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return list(grads), (float(loss.detach()), count, metrics, torch.rand(()).item())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_those_of_the_unchecked_pass_to_the_bit(shape: dict[str, Any], how: str) -> None:
    """Packed documents, z-loss, routers, and dropout, whose generator ends where it would have ended."""
    model = model_of(shape)
    plain, figures = step(model, "none")
    again, same = step(model, how)
    assert figures == same
    for (name, _), expected, found in zip(model.named_parameters(), plain, again, strict=True):
        assert (expected is None) == (found is None), name
        assert expected is None or (torch.equal(expected, found) and bool(expected.any())), name


@pytest.mark.parametrize("how", HOW)
def test_bf16_gradients_are_the_same_to_the_bit(how: str) -> None:
    model = model_of({}).bfloat16()
    plain, _ = step(model, "none")
    again, _ = step(model, how)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))  # type: ignore[arg-type]


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made under it and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, 0)
        return out


def kept_bytes(model: Transformer, how: str) -> int:
    """What waits for the backward pass, in whatever way it is held."""
    model.checkpointing = how
    with Alive() as alive:
        loss = next_token(model, packed(model.config.vocab_size))[0]
        assert loss.requires_grad
        return sum(alive.sizes.values())


@pytest.mark.parametrize("how", ["none", *HOW])
def test_nothing_of_a_pass_outlives_it(how: str) -> None:
    """Also of experts, whose routers' figures belong to the graph and leave the block beside its result."""
    model = model_of(SHAPES["experts"])
    model.checkpointing = how
    left = []
    with Alive() as alive:
        for _ in range(3):  # the first makes tables that are kept
            torch.autograd.grad(next_token(model, packed(model.config.vocab_size))[0], list(model.parameters()))
            left.append(sum(alive.sizes.values()))
    assert left[0] == left[1] == left[2]


def test_blocks_keep_least_and_selective_less_than_all() -> None:
    model = model_of({"n_layers": 6})
    everything, most, least = (kept_bytes(model, how) for how in ("none", "selective", "blocks"))
    assert least < 0.45 * everything and least < most < 0.8 * everything


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: master.detach().clone() for name, master in trainer.weights.masters.items()}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("streams", "dropout"), [(1, 0.0), (2, 0.0), (1, 0.3)])
def test_a_run_ends_with_the_same_weights(make_trainer, tmp_path: Path, how: str, streams: int, dropout: float) -> None:
    """Also of micro-batches in two threads, whose blocks are computed again side by side."""
    ends = []
    for name in ("none", how):
        trainer = make_trainer(
            folder=tmp_path / name, steps=4, micro_rows=1, streams=streams, dropout=dropout, checkpointing=name
        )
        assert (trainer.streams is not None) == (streams == 2)
        trainer.fit()
        ends.append(weights(trainer))
    assert all(torch.equal(ends[0][name], weight) for name, weight in ends[1].items())
