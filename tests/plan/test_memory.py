"""The memory model against tensors: what autograd keeps, what a whole step holds, what the cache and optimizers are."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sproutlm.config.model import ModelConfig, ResearchPart
from sproutlm.config.presets import PRESETS
from sproutlm.config.schema import OptimizerConfig
from sproutlm.data.loader import Batch
from sproutlm.model import Transformer
from sproutlm.model.kv_cache import KVCache
from sproutlm.objectives.next_token import next_token
from sproutlm.plan.memory import (
    BYTES,
    PROGRAM,
    Compute,
    Setting,
    inference_memory,
    kv_bytes_per_token,
    step_bytes,
    training_memory,
)
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.optim import Optimizers
from sproutlm.train.precision import MasterWeights
from sproutlm.train.saver import BackgroundSaver

TYPES: dict[Compute, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
BASE: dict[str, Any] = {
    "vocab_size": 97, "dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 512, "ffn_dim": 192
}  # fmt: skip
EXPERTS = {"n_experts": 8, "top_k": 2, "expert_dim": 64}
SHAPES = {
    "llama": {"family": "llama"},
    "qwen3": {},
    "gpt2": {"family": "gpt2", "n_kv_heads": 4, "ffn_dim": 256},
    "window": {"family": "mistral", "sliding_window": 64},
    "gemma2": {"family": "gemma2"},
    "experts": {"family": "qwen3_moe", "moe": EXPERTS},
    "research": {"family": "research", "research": get_args(ResearchPart)},
    "shared expert": {"family": "qwen2_moe", "moe": EXPERTS | {"shared_dim": 96, "shared_gate": True}},
}
ROWS, SEQ = 2, 288  # above 256: shorter rows in bf16 on a CPU are attended without the fused kernel


def batch_of(config: ModelConfig, rows: int, seq: int) -> Batch:
    tokens = torch.randint(0, config.vocab_size, (rows, seq), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(seq).expand(rows, seq)
    return Batch(tokens, tokens, positions, positions // (seq // 2), torch.arange(rows))


@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_activations_are_about_what_autograd_keeps(shape: dict[str, Any], compute: Compute) -> None:
    """Unique storages saved for the backward pass, weights left out: the estimate is between 0.85 and 1.3 of them."""
    config = ModelConfig(**BASE | shape)
    model = Transformer(config).init_weights(0).to(TYPES[compute])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        next_token(model, batch_of(config, ROWS, SEQ))
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    saved -= config.vocab_size * config.dim * BYTES[compute]  # the head's gradient, which counts as logits
    estimate = training_memory(config, Setting(ROWS, SEQ, compute, device="cpu"))["activations"]
    assert 0.85 < estimate / saved < 1.3, (estimate, saved)


class Live(TorchDispatchMode):
    """Bytes of all tensors alive that were made under it, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, storage._cdata)
        return out

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


STEPS = {  # rows, row length, shape
    "wide": (3, 272, {"vocab_size": 500, "dim": 256, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2}),
    "update": (1, 16, {"vocab_size": 100, "dim": 192, "n_layers": 6, "n_heads": 4}),
}


def peak_of_steps(config: ModelConfig, setting: Setting, updates: bool = True) -> int:
    """The most bytes alive in two steps of two micro-batches, as the trainer makes them, the first of which makes the
    optimizer's state; without ``updates`` in one step up to there."""
    compute, optimizer = setting.compute, setting.optimizer
    live = Live()
    with live:
        weights = MasterWeights(Transformer(config).init_weights(0), TYPES[compute])
        weights.model.checkpointing = setting.checkpointing
        optimizers = Optimizers(OptimizerConfig(name=optimizer), weights.masters, TYPES[compute])
        batch = batch_of(config, setting.rows, setting.seq_len)
        for _ in range(2 if updates else 1):
            for _ in range(2):
                next_token(weights.model, batch, chunk=setting.loss_chunk)[0].backward()  # type: ignore[arg-type]
                weights.collect_gradients()
            if not updates:
                break
            optimizers.step(1.0, 0.5)
            weights.publish()
            for master in weights.masters.values():
                master.grad = None
    return live.peak


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_whole_step_is_within_a_fifth_of_the_estimate(step: Any, compute: Compute, optimizer: Any) -> None:
    rows, seq, shape = step
    config, setting = ModelConfig(**{"max_seq_len": 512, **shape}), Setting(rows, seq, compute, optimizer)
    estimate, peak = sum(training_memory(config, setting).values()) - PROGRAM, peak_of_steps(config, setting)
    assert 0.85 < estimate / peak < 1.2, (estimate, peak)


@pytest.mark.parametrize("how", ["blocks", "selective"])
@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("shape", ["qwen3", "gpt2", "gemma2", "experts", "research"])
def test_activations_of_blocks_computed_again_are_about_what_lives(shape: str, compute: Compute, how: Any) -> None:
    """The most that lives beside weights and gradients before the update."""
    config = ModelConfig(**BASE | {"n_layers": 6} | SHAPES[shape])
    rows = 3 * ROWS if config.moe else ROWS  # else the weights of experts outweigh all
    setting = Setting(rows, SEQ, compute, "adamw", device="cpu", checkpointing=how, loss_chunk=128)
    parts = training_memory(config, setting)
    lives = peak_of_steps(config, setting, updates=False)
    lives -= parts["parameters"] + parts["gradients"] + parts["logits"]
    assert 0.85 < parts["activations"] / lives < 1.3, (parts["activations"], lives)


@pytest.mark.parametrize("shape", [{}, {"family": "qwen3_moe", "moe": EXPERTS}], ids=["dense", "experts"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
def test_the_optimizers_state_is_counted_to_the_byte(optimizer: Any, state_dtype: Any, shape: dict[str, Any]) -> None:
    config = ModelConfig(**BASE | shape)
    model = Transformer(config).init_weights(0)
    how = OptimizerConfig(name=optimizer, state_dtype=state_dtype)
    optimizers = Optimizers(how, dict(model.named_parameters()), torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1.0, 0.5)
    state = sum(t.nbytes for name, t in optimizers.tensors().items() if not name.endswith("/step"))
    setting = Setting(1, 8, "float32", optimizer, state_dtype=state_dtype)
    assert training_memory(config, setting)["optimizer"] == state


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_copy_that_is_saved_beside_the_loop_is_counted_on_a_cpu(optimizer: Any, tmp_path: Path) -> None:
    config = ModelConfig(**BASE)
    model = Transformer(config).init_weights(0)
    masters = dict(model.named_parameters())
    optimizers = Optimizers(OptimizerConfig(name=optimizer), masters, torch.float32)
    for parameter in masters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1.0, 0.5)
    saver = BackgroundSaver(Checkpointer(tmp_path))
    saver.save(1, masters, optimizers.tensors(), {}, {})
    saver.finish()
    copied = sum(t.nbytes for copies in saver._copies for name, t in copies.items() if not name.endswith("/step"))
    setting = Setting(1, 8, "float32", optimizer, device="cpu")
    beside = replace(setting, async_save=True)
    assert training_memory(config, beside)["checkpoint_copy"] == copied
    assert step_bytes(config, beside) - step_bytes(config, setting) == copied
    card = replace(beside, device="card")  # whose own memory holds no copy
    assert step_bytes(config, card) == step_bytes(config, replace(card, async_save=False))


def test_masters_copies_and_gradients() -> None:
    config = ModelConfig(**PRESETS["qwen3-0.6b"].shape)
    n = 596_049_920
    low, full = (training_memory(config, Setting(1, 512, compute)) for compute in ("bf16", "float32"))
    # Gradients in bf16 come while activations go: only what exceeds their room counts.
    beside = low["activations"] + low["logits"]
    assert (low["parameters"], low["gradients"]) == (6 * n, 4 * n + max(0, 2 * n - beside))
    assert (full["parameters"], full["gradients"]) == (4 * n, 4 * n)
    assert training_memory(config, Setting(1, 512, "bf16", "adamw"))["optimizer"] == 8 * n


@pytest.mark.parametrize("compute", TYPES)
def test_the_cache_is_what_the_engine_allocates(compute: Compute) -> None:
    """Grouped queries: of the key heads, not of the query heads; a windowed layer keeps everything, as our cache does."""
    config = ModelConfig(**BASE | {"sliding_window": 64})
    cache = KVCache(config, batch=3, max_len=100, dtype=TYPES[compute])
    allocated = cache.keys.nbytes + cache.values.nbytes
    assert (
        inference_memory(config, 3, 100, compute)["kv_cache"] == allocated == 300 * kv_bytes_per_token(config, compute)
    )
    model = Transformer(config).to(TYPES[compute])
    weights = sum(p.nbytes for p in model.parameters())
    assert inference_memory(config, 3, 100, compute)["parameters"] == weights


@pytest.mark.parametrize("shape", [{}, {"family": "qwen3_moe", "moe": EXPERTS}, {"family": "gpt2", "n_kv_heads": 4}])
def test_reading_a_prompt_takes_no_more_than_is_said(shape: dict[str, Any]) -> None:
    config = ModelConfig(**BASE | shape)
    live = Live()
    with live, torch.inference_mode():
        model = Transformer(config).init_weights(0)
        cache = KVCache(config, batch=2, max_len=SEQ)
        model(torch.zeros(2, SEQ, dtype=torch.int64), cache=cache, head=lambda hidden, w: hidden[:, -1] @ w.T)
    parts = inference_memory(config, 2, SEQ, "float32")
    assert 0.6 < (sum(parts.values()) - PROGRAM) / live.peak < 1.5


def test_more_rows_cost_more_and_a_mask_costs_its_square() -> None:
    config = ModelConfig(**BASE)
    one = Setting(4, 256)
    plain = training_memory(config, replace(one, document_mask=False))["activations"]
    masked = training_memory(config, one)["activations"]
    assert masked - plain == 4 * 256**2 * 4
    assert training_memory(config, replace(one, rows=8, document_mask=False))["activations"] == 2 * plain
