"""The one place where parallelism touches a model, in one order: heads and channels, experts, rows, then whole blocks.

Recomputing and compiling blocks are settings of the model (``train.checkpointing``, ``train.compile``) and hold inside each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.parallel import ParallelConfig, model_faults
from ..errors import SproutError
from ..model import Transformer
from ..model.moe import MoE
from .context_parallel import apply_context_parallel
from .dims import SHARD
from .expert_parallel import apply_expert_parallel
from .layout import Layout, Piece
from .ranks import Ranks
from .tensor_parallel import apply_tensor_parallel

Source = Callable[[str], Tensor]  # a parameter's whole first value, by name


def parallelize(model: Transformer, ranks: Ranks, asked: ParallelConfig, compute: torch.dtype) -> Layout:
    """Change ``model``, built without values (``on_meta``), into this rank's part of it; says which part that is.

    ``compute``: type of the forward and backward pass where weights are sharded, whose masters are then the parameters.
    """
    faults = model_faults(asked, model.config)
    if faults:
        raise SproutError("; ".join(f"{keys[0]}: {message}" for keys, message in faults))
    pieces = {name: Piece(tuple(p.shape)) for name, p in model.named_parameters()}
    apply_tensor_parallel(model, ranks, pieces)
    apply_expert_parallel(model, ranks, pieces)
    apply_context_parallel(model, ranks)
    model.row_part = (ranks.index(("cp", "tp")), ranks.dims.cp * ranks.dims.tp)
    model.query_part = (ranks.index(("cp",)), ranks.dims.cp)
    if ranks.dims.shard > 1:
        _shard(model, ranks, compute, pieces)
    return Layout(ranks, pieces)


def _shard(model: Transformer, ranks: Ranks, compute: torch.dtype, pieces: dict[str, Piece]) -> None:
    """FSDP2, block by block; experts that lie on different ranks already are shared by those that hold the same ones."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard  # a second to import

    policy = MixedPrecisionPolicy(
        param_dtype=compute,
        reduce_dtype=torch.promote_types(compute, torch.float32),  # sums over micro-batches, too
        cast_forward_inputs=False,
    )
    assert ranks.mesh is not None
    mesh, split_experts = ranks.mesh_of(SHARD), ranks.dims.inner > 1
    apart: set[nn.Parameter] = set()  # of experts
    for block in model.layers:
        if split_experts and isinstance(block.mlp, MoE):
            # Also where no two ranks hold the same experts: it is what gives them the compute type.
            fully_shard(block.mlp.experts, mesh=ranks.mesh["outer"], mp_policy=policy)
            apart |= set(block.mlp.experts.parameters())
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=apart)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=apart)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sums, never means
            part.set_force_sum_reduction_for_comms(True)
    for name, piece in pieces.items():
        axes = ("outer",) if split_experts and ".mlp.experts." in name else SHARD
        if ranks.dims.size(axes) > 1:
            pieces[name] = piece.split(axes, 0)


@torch.no_grad()
def fill(model: Transformer, layout: Layout, source: Source) -> None:
    """Give every parameter this rank's part of its first value, one whole tensor at a time."""
    model.to_empty(device=layout.ranks.device)
    for name, parameter in model.named_parameters():
        local_part(parameter).copy_(layout.piece(name, parameter).cut(source(name), layout.ranks))


def local_part(parameter: Tensor) -> Tensor:
    """The values that lie on this rank, sharing memory with ``parameter``."""
    value = parameter.detach()
    return value.to_local() if hasattr(value, "to_local") else value
