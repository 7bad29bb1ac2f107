"""What ``sprout verify dist`` trains, in one process and in several: tiny models, rows of unequal weight, a partial tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.model import ModelConfig, MoEConfig
from ..config.parallel import ParallelConfig
from ..config.schema import OptimizerConfig, ScheduleConfig, TrainConfig
from ..data.loader import IGNORE, Batch
from ..distributed import ALONE, Layout, Ranks, parallelize
from ..distributed.parallelize import fill
from ..eval.bits_per_byte import make_evaluator
from ..model import Transformer
from ..model.meta import on_meta
from ..objectives.next_token import next_token
from ..train.checkpoint import Checkpointer
from ..train.trackers import Unwatched
from ..train.trainer import Trainer

STEPS = 20
DENSE = ModelConfig(vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=64, max_seq_len=64)
MODELS = {
    "dense": DENSE,
    # Biases of layers whose inputs are split, learned positions, a tied head.
    "gpt2": ModelConfig(family="gpt2", vocab_size=96, dim=32, n_layers=2, n_heads=4, ffn_dim=64, max_seq_len=64),
    "windows": DENSE.model_copy(update={"sliding_window": 6, "window_pattern": "SF"}),
    "experts": ModelConfig(
        family="qwen3_moe", vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=64, max_seq_len=64,
        # A balancing loss is no sum over tokens: it depends on which tokens share a micro-batch, in one process too.
        moe=MoEConfig(n_experts=4, top_k=2, expert_dim=16, balance="none"),
    ),
}  # fmt: skip


class UnequalRows:
    """``batch(step)`` as a pure function. A step has 7 rows, which neither 2 nor 4 ranks share evenly; row i trains about one
    target in (i + 1), row 3 only at its beginning, and every other row holds two documents."""

    rows, seq, rows_per_epoch = 7, 24, 7

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        return self.rows_batch(np.arange(self.rows)[rank::world_size] + step * self.rows)

    def rows_batch(self, row_ids: np.ndarray) -> Batch:
        tokens = torch.empty(len(row_ids), self.seq, dtype=torch.int64)
        targets, documents, positions = tokens.clone(), tokens.clone(), tokens.clone()
        for place, row_id in enumerate(row_ids.tolist()):
            g = torch.Generator().manual_seed(500 + row_id)
            tokens[place] = torch.randint(0, 96, (self.seq,), generator=g)
            targets[place] = (tokens[place] * 5 + 3) % 96
            targets[place, torch.arange(self.seq) % (row_id % self.rows + 1) != 0] = IGNORE
            if row_id % self.rows == 3:  # ranks that have the end of this row train nothing of it
                targets[place, 5:] = IGNORE
            cut = 9 if row_id % 2 else self.seq
            documents[place] = (torch.arange(self.seq) >= cut).long()
            positions[place] = torch.arange(self.seq) - cut * documents[place]
        return Batch(tokens, targets, positions, documents, torch.from_numpy(np.asarray(row_ids, dtype=np.int64)))


class CountedTargets:
    """In place of the bytes of a text: its targets."""

    def of(self, batch: Batch) -> int:
        return batch.trained


@dataclass(frozen=True)
class Form:
    """One way of sharing a run among four processes."""

    name: str
    parallel: dict[str, Any]
    model: str = "dense"


FORMS = (
    Form("DDP", {"dp": 4}),
    Form("FSDP2", {"dp": 4, "shard": 4}),
    Form("HSDP, 2 copies", {"dp": 4, "shard": 2}),
    Form("tensor and sequence parallel, 4", {"tp": 4}),
    Form("tensor parallel, biases and tied head", {"dp": 2, "tp": 2}, "gpt2"),
    Form("context parallel (Ulysses), 4", {"cp": 4}),
    Form("context parallel with windows", {"dp": 2, "cp": 2}, "windows"),
    Form("context parallel with learned positions", {"dp": 2, "cp": 2}, "gpt2"),
    Form("experts on 4 ranks", {"dp": 4, "ep": 4}, "experts"),
    Form("experts on 2 ranks, two copies", {"dp": 4, "ep": 2}, "experts"),
    Form("FSDP2 and tensor parallel", {"dp": 2, "shard": 2, "tp": 2}),
    Form("FSDP2 and context parallel", {"dp": 2, "shard": 2, "cp": 2}),
    Form("FSDP2 and experts on 2 ranks", {"dp": 4, "shard": 4, "ep": 2}, "experts"),
    Form("FSDP2 and experts on 4 ranks", {"dp": 4, "shard": 4, "ep": 4}, "experts"),
    Form("HSDP and experts on 2 ranks", {"dp": 4, "shard": 2, "ep": 2}, "experts"),
    Form("tensor parallel and experts on 2 ranks", {"dp": 2, "tp": 2, "ep": 2}, "experts"),
    Form("tensor and context parallel", {"cp": 2, "tp": 2}),
)


def first_values(config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """First weights by name; those that begin at zero are drawn too, or half of the gradients would be zero."""
    model = Transformer(config).init_weights(1)
    g = torch.Generator().manual_seed(7)
    values = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        if not value.any():
            value.normal_(0.0, 0.05, generator=g)
        values[name] = value.to(dtype)
    return values


@dataclass
class Run:
    """A trainer over ``UnequalRows``, and what its steps did."""

    trainer: Trainer
    gradients: dict[str, Tensor] = field(default_factory=dict)  # this rank's parts, divided, as the optimizers get them
    norm: float = 0.0
    row_ids: list[int] = field(default_factory=list)

    def step(self) -> None:
        """One step, its gradients kept."""
        optimizers, number = self.trainer.optimizers, self.trainer.state.step
        inner = optimizers.step

        def kept(multiplier: float, progress: float) -> None:
            self.gradients = {n: m.grad.clone() for n, m in self.trainer.weights.masters.items() if m.grad is not None}
            inner(multiplier, progress)

        optimizers.step = kept  # type: ignore[method-assign]
        try:
            self.row_ids = self.trainer._batch(number).row_ids.tolist()
            _, _, self.norm = self.trainer.train_step(number)
        finally:
            optimizers.step = inner  # type: ignore[method-assign]
        self.trainer.state.step += 1

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from every rank's parts, by name."""
        layout = self.trainer.layout
        return {name: layout.piece(name, part).whole(part, layout.ranks) for name, part in parts.items()}


def run_of(
    config: ModelConfig, optimizer: str, micro_rows: int, dtype: torch.dtype, ranks: Ranks = ALONE,
    parallel: ParallelConfig | None = None,
) -> Run:  # fmt: skip
    """A run in one process, or this rank's part of it."""
    values = first_values(config, dtype)
    if parallel is None:
        model, layout = Transformer(config).to(dtype), Layout()
        model.load_state_dict(values)
    else:
        model = on_meta(config).to(dtype)
        layout = parallelize(model, ranks, parallel, dtype)
        fill(model, layout, values.__getitem__)
    train = TrainConfig(steps=STEPS, batch_tokens=7 * 24, clip=0.0, log_every=1000, device="cpu")
    nowhere = Path("nowhere")
    trainer = Trainer(
        model,
        next_token,
        UnequalRows(),
        optimizer=OptimizerConfig(name=optimizer, lr=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(warmup=2),
        config=train,
        total_steps=STEPS,
        micro_rows=micro_rows,
        seed=1,
        compute=dtype,
        checkpointer=Checkpointer(nowhere, say=lambda line: None),
        metrics=Unwatched(),
        checkpoint_files={},
        identity={},
        layout=layout,
        say=lambda line: None,
    )
    trainer.model.train()
    return Run(trainer)


def validation_loss(run: Run) -> float:
    """Over 5 rows, 2 at a time: three batches, which no number of ranks here shares evenly."""
    evaluate = make_evaluator(UnequalRows(), CountedTargets(), 5, 2, run.trainer.ranks)  # type: ignore[arg-type]
    return evaluate(run.trainer.model, 0)["val_loss"]
