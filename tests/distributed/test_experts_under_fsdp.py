"""What routers note under FSDP2, which rebuilds some arguments of the blocks that it wraps. A group of one process is enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sproutlm.config.model import ModelConfig, MoEConfig
from sproutlm.config.schema import OptimizerConfig
from sproutlm.distributed import Layout, Piece, Ranks
from sproutlm.distributed.dims import ParallelDims
from sproutlm.model import Transformer
from sproutlm.model.moe import Routing
from sproutlm.train.optim import Optimizers

CONFIG = ModelConfig(
    family="dots1", vocab_size=32, dim=16, n_layers=3, n_heads=2, ffn_dim=32, max_seq_len=16,
    moe=MoEConfig(n_experts=4, top_k=2, expert_dim=8, shared_dim=8, score="sigmoid", balance="bias", z_weight=0.01),
)  # fmt: skip


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def noted(model: Transformer) -> dict[str, list[Tensor]]:
    routing = Routing()
    tokens = torch.arange(12).view(2, 6)
    model(tokens, head=lambda hidden, weight: hidden.sum(), routing=routing)
    return vars(routing)


def test_every_layer_is_heard_under_fsdp2(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    expected = noted(Transformer(CONFIG).init_weights(1))
    model = Transformer(CONFIG).init_weights(1)
    mesh = init_device_mesh("cpu", (1,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = noted(model)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(expected, CONFIG.n_layers)
    for name, values in expected.items():
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(values))


def test_a_rank_without_an_expert_updates_the_rest() -> None:
    """Four experts among six ranks: the last ones hold none."""
    name = "layers.0.mlp.experts.up_proj.weight"
    piece = Piece((4, 8, 16), ((("outer",), 0),))
    ranks = Ranks(5, ParallelDims(outer=6, shard=6))
    part = torch.nn.Parameter(piece.cut(torch.zeros(4, 8, 16), ranks).clone())
    assert part.shape == (0, 8, 16)
    part.grad = torch.zeros_like(part)
    optimizers = Optimizers(OptimizerConfig(), {name: part}, torch.float32, 0.001, Layout(ranks, {name: piece}))
    optimizers.step(1.0, 0.0)
    assert optimizers.tensors() == {}
