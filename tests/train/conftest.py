"""A small model, batches with unequal numbers of trained targets, and a trainer over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import OptimizerConfig, ScheduleConfig, TrainConfig
from sproutlm.data.loader import IGNORE, Batch
from sproutlm.model import Transformer
from sproutlm.objectives.next_token import next_token
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.metrics import MetricsLog
from sproutlm.train.trainer import Trainer

SHAPE = ModelConfig(vocab_size=32, dim=16, n_layers=2, n_heads=2, ffn_dim=32, max_seq_len=32)


class RandomRows:
    """``batch(step)`` as a pure function of the step. Row ``i`` of a batch trains only its first ``i + 1`` targets, so
    that no two micro-batches count alike."""

    def __init__(self, rows: int = 8, seq: int = 12, vocab: int = 32) -> None:
        self.rows, self.seq, self.vocab = rows, seq, vocab

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        g = torch.Generator().manual_seed(1000 + step)
        tokens = torch.randint(0, self.vocab, (self.rows, self.seq), generator=g)
        targets = (tokens * 5 + 3) % self.vocab  # a rule that can be learnt
        for row in range(self.rows):
            targets[row, row + 1 :] = IGNORE
        positions = torch.arange(self.seq).expand(self.rows, self.seq)
        return Batch(tokens, targets, positions, None, torch.arange(self.rows) + step * self.rows)


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A trainer in ``tmp_path``; keyword arguments replace single settings. Sentences go to ``trainer.said``."""

    def make(
        loader: Any = None,
        *,
        steps: int = 6,
        micro_rows: int = 8,
        streams: int = 1,
        objective: Any = next_token,
        compute: torch.dtype = torch.float32,
        dropout: float = 0.0,
        optimizer: OptimizerConfig | None = None,
        folder: Path = tmp_path,
        evaluators: Any = None,
        sampler: Any = None,
        **train: Any,
    ) -> Trainer:
        said: list[str] = []
        config = TrainConfig(**{"steps": steps, "log_every": 1, "save_every": 1000, **train})
        trainer = Trainer(
            Transformer(SHAPE.model_copy(update={"dropout": dropout})).init_weights(1),
            objective,
            loader or RandomRows(),
            optimizer=optimizer or OptimizerConfig(),
            schedule=ScheduleConfig(warmup=2),
            config=config,
            total_steps=steps,
            micro_rows=micro_rows,
            seed=1,
            streams=streams,
            compute=compute,
            checkpointer=Checkpointer(folder / "checkpoints", config.keep_last, said.append),
            metrics=MetricsLog(folder / "metrics.jsonl"),
            checkpoint_files={"model_config.json": SHAPE.model_dump_json()},
            identity={},
            evaluators=evaluators,
            sampler=sampler,
            say=said.append,
        )
        trainer.said = said  # type: ignore[attr-defined]
        return trainer

    return make
