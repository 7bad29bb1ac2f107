"""How the processes of one run share it, and which combinations are possible: known before any process group starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from .strict import Fault, Strict

if TYPE_CHECKING:
    from .model import ModelConfig
    from .schema import Recipe


class ParallelConfig(Strict):
    """How the processes that torchrun starts share one run: world size = dp * cp * tp. One process needs none of it."""

    dp: int = Field(
        0, ge=0, description="Data-parallel ranks, each with rows of its own; 0 = all that cp and tp leave."
    )
    shard: int = Field(
        1,
        ge=0,
        description="Of the dp ranks, how many share one copy of weights, gradients and optimizer state: 1 = each has a "
        "copy (DDP), 0 = all share one (FSDP2), in between = several copies (HSDP).",
    )
    tp: int = Field(
        1, ge=1, description="Tensor-parallel ranks: heads and MLP width split, all else split along the row."
    )
    cp: int = Field(
        1, ge=1, description="Context-parallel ranks (Ulysses): rows split along their length, heads exchanged."
    )
    ep: int = Field(1, ge=1, description="Expert-parallel ranks, of the dp ranks: each holds a share of the experts.")
    timeout: float = Field(
        600.0, gt=0, description="Seconds without a step after which a run is ended, naming the rank that is behind."
    )
    check_every: int = Field(
        0,
        ge=0,
        description="Debugging: steps between checks that ranks agree on weights and optimizer state; 0 = never.",
    )

    @property
    def whole(self) -> bool:
        """Whether every rank holds the whole model."""
        return self.shard == self.tp == self.cp == self.ep == 1


def parallel_faults(recipe: Recipe) -> list[Fault]:
    """What cannot be, whatever the number of processes turns out to be."""
    asked, train, data = recipe.parallel, recipe.train, recipe.data
    faults = []
    if asked.dp:
        rows = train.batch_tokens // data.seq_len
        if rows < asked.dp:
            faults.append(
                Fault(
                    ("parallel.dp", "train.batch_tokens"),
                    f"a step has {rows} rows, fewer than parallel.dp={asked.dp}; raise train.batch_tokens to at least "
                    f"{asked.dp * data.seq_len}, or lower parallel.dp",
                )
            )
        shard = asked.shard or asked.dp
        if asked.dp % shard:
            faults.append(
                Fault(
                    ("parallel.shard", "parallel.dp"), f"{shard} does not divide parallel.dp={asked.dp}; use a divisor"
                )
            )
        # Experts are split among ranks that share one copy, or, where each has its own copy, among all of them.
        among, named = (shard, "shard") if shard > 1 else (asked.dp, "dp")
        if among % asked.ep:
            faults.append(
                Fault(
                    ("parallel.ep", f"parallel.{named}"),
                    f"{asked.ep} does not divide parallel.{named}={among}; use a divisor",
                )
            )
    row = asked.cp * asked.tp
    if data.seq_len % row:
        faults.append(
            Fault(
                ("data.seq_len", "parallel.cp", "parallel.tp"),
                f"{data.seq_len} cannot be split into parallel.cp * parallel.tp = {row} equal parts; use a multiple of {row}",
            )
        )
    if asked.shard != 1 or row > 1 or asked.ep > 1:
        if recipe.optimizer.state_dtype == "int8":
            faults.append(
                Fault(
                    ("optimizer.state_dtype", "parallel"),
                    "averages of a byte are kept in blocks that no split of a weight respects; use float32 here",
                )
            )
        if train.compile == "blocks":
            faults.append(
                Fault(
                    ("train.compile", "parallel"),
                    "blocks are compiled only where each rank holds whole ones; leave train.compile at auto or none",
                )
            )
    if recipe.model is not None:
        faults += [Fault(keys, message) for keys, message in model_faults(asked, recipe.model)]
    return faults


def model_faults(asked: ParallelConfig, model: ModelConfig) -> list[tuple[tuple[str, ...], str]]:
    """Splits that a model of this shape does not have, as (keys, sentence)."""
    faults: list[tuple[tuple[str, ...], str]] = []
    heads = asked.tp * asked.cp
    for key, count in (("n_heads", model.n_heads), ("n_kv_heads", model.n_kv_heads)):
        if count % heads:
            faults.append(
                (
                    ("parallel.tp", "parallel.cp", f"model.{key}"),
                    f"{count} heads (model.{key}) cannot be split among parallel.tp * parallel.cp = {heads} ranks; use a "
                    f"divisor of {count}",
                )
            )
    if model.ffn_dim % asked.tp and (model.moe is None or model.moe.dense_layers):
        faults.append(
            (
                ("parallel.tp", "model.ffn_dim"),
                f"model.ffn_dim={model.ffn_dim} cannot be split among {asked.tp} ranks; use a divisor",
            )
        )
    if asked.ep > 1 and model.moe is None:
        faults.append((("parallel.ep", "model.moe"), "this model has no experts; set parallel.ep to 1"))
    if model.moe is not None and model.moe.n_experts % asked.ep:
        faults.append(
            (
                ("parallel.ep", "model.moe.n_experts"),
                f"{model.moe.n_experts} experts cannot be split among parallel.ep={asked.ep} ranks; use a divisor",
            )
        )
    if heads > 1 and model.research:
        faults.append(
            (
                ("parallel.tp", "parallel.cp", "model.research"),
                "parts of model.research read the token before, which may lie on another rank; use dp and shard alone",
            )
        )
    return faults
