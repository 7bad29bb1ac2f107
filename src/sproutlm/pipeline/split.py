"""How a step's rows are split into micro-batches: what a run does, and what the plan of it counts."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config.model import ModelConfig
from ..config.schema import Recipe
from ..plan import Setting, count
from ..plan.memory import Compute, Device, bounded_rows


def micro_rows(recipe: Recipe, streams: int = 0) -> int:
    """Rows per forward pass: as set, else an equal share of the step for each stream."""
    streams = streams or recipe.train.streams
    return recipe.train.micro_batch or -(-recipe.train.batch_tokens // recipe.data.seq_len // max(1, streams))


def choose_streams(recipe: Recipe, config: ModelConfig, device: Device, parameters: int) -> int:
    """One stream per core for a small model on CPU whose micro-batch was left open; else one."""
    if recipe.train.streams:
        return recipe.train.streams
    fits = device == "cpu" and config.dropout == 0 and parameters < 50_000_000 and not recipe.train.micro_batch
    return min(torch.get_num_threads(), recipe.train.batch_tokens // recipe.data.seq_len) if fits else 1


def setting_of(recipe: Recipe, compute: Compute, device: Device = "card", config: ModelConfig | None = None) -> Setting:
    """What of the recipe decides the memory of a step.

    On a CPU micro-batches may run side by side, and where the recipe leaves their size open they are no larger than their
    activations allow; ``config`` decides both.
    """
    on_cpu = device == "cpu" and config is not None
    streams = choose_streams(recipe, config, device, count(config).total) if on_cpu and config is not None else 1
    rows = micro_rows(recipe, streams)
    step_rows = recipe.train.batch_tokens // recipe.data.seq_len
    setting = Setting(
        rows,
        recipe.data.seq_len,
        compute,
        recipe.optimizer.name,
        recipe.data.document_mask,
        device,
        max(1, min(streams, step_rows // rows)),
        recipe.train.checkpointing,
        recipe.train.loss_chunk,
        recipe.train.batch_tokens,
        recipe.optimizer.state_dtype,
        recipe.train.async_save,
    )
    if config is None or device != "cpu" or recipe.train.micro_batch:
        return setting
    return replace(setting, rows=bounded_rows(config, setting))
