"""``sprout plan --probe``: the longest step of a recipe, really made, in a process of its own.

Two steps of the one trainer on rows that are full to the last token, all of them trained: the first makes the optimizer's
state, the second is measured. Of a large step only two rounds of micro-batches are made, which is where memory peaks; the
time of the whole follows from theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..config.model import ModelConfig
from ..config.schema import Recipe
from ..data.loader import Batch
from ..errors import OutOfMemory, SproutError
from ..plan.memory import Setting


def probe(recipe: Recipe, config: ModelConfig, setting: Setting) -> dict[str, Any]:
    """``peak_bytes`` and ``seconds`` of one step, ``seconds_measured`` of what was really made."""
    order = {
        "recipe": recipe.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "rows": setting.rows,
        "streams": setting.streams,
        "compute": setting.compute,
    }
    ran = subprocess.run(
        [sys.executable, "-m", "sproutlm.pipeline.probe"], input=json.dumps(order), capture_output=True, text=True
    )
    last = ran.stdout.strip().splitlines()[-1:] or [""]
    if ran.returncode == 0 and last[0].startswith("{"):
        return json.loads(last[0])
    if ran.returncode in (-9, 137):
        raise OutOfMemory(
            f"{recipe.name}: the probe was ended by the kernel (killed): a step does not fit this machine"
        )
    said = (ran.stderr.strip() or ran.stdout.strip() or "nothing").splitlines()[-1]
    raise SproutError(f"{recipe.name}: the probe ended with {ran.returncode} and said: {said}")


class FullRows:
    """A loader of random rows without an end of document in them: nothing is longer."""

    def __init__(self, rows: int, seq_len: int, vocab_size: int, document_mask: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocab_size, (rows, seq_len), generator=generator)
        positions = torch.arange(seq_len).expand(rows, seq_len)
        # Two documents a row: the mask is then made, as it is for packed rows.
        documents = positions // max(1, -(-seq_len // 2)) if document_mask else None
        self._batch = Batch(tokens, tokens.roll(-1, 1), positions, documents, torch.arange(rows))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        return self._batch


def run(order: dict[str, Any]) -> dict[str, Any]:
    """In the child: make the steps, measure the second."""
    from ..model import Transformer
    from ..train.allocator import keep_freed_memory
    from ..train.checkpoint import Checkpointer
    from ..train.metrics import MetricsLog
    from ..train.trainer import Trainer
    from .train import COMPUTE_TYPES, choose_device, objective_of

    recipe, config = Recipe.model_validate(order["recipe"]), ModelConfig.model_validate(order["config"])
    device, seq_len = choose_device(recipe.train.device), recipe.data.seq_len
    if device.type == "cpu":
        keep_freed_memory()  # as a run does
    whole = recipe.train.batch_tokens // seq_len
    rows = min(whole, 2 * order["rows"] * order["streams"])
    with tempfile.TemporaryDirectory(prefix="sprout-probe-") as place:
        trainer = Trainer(
            Transformer(config).init_weights(recipe.seed).to(device),
            objective_of(recipe),
            FullRows(rows, seq_len, config.vocab_size, recipe.data.document_mask),
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            config=recipe.train,
            total_steps=10,
            micro_rows=order["rows"],
            seed=recipe.seed,
            streams=order["streams"],
            compute=COMPUTE_TYPES[order["compute"]],
            checkpointer=Checkpointer(Path(place) / "checkpoints", 1),
            metrics=MetricsLog(Path(place) / "metrics.jsonl"),
            checkpoint_files={},
            identity={},
        )
        trainer.model.train()
        trainer.train_step(0)
        started = time.perf_counter()
        trainer.train_step(1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        trainer.close()
    return {
        "device": str(device),
        "rows": rows,
        "peak_bytes": _peak(device),
        "seconds_measured": seconds,
        "seconds": seconds * whole / rows,
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import psutil

        info = psutil.Process().memory_info()
        return getattr(info, "peak_wset", info.rss)


if __name__ == "__main__":
    try:
        print(json.dumps(run(json.load(sys.stdin))))
    except SproutError as fault:
        print(fault, file=sys.stderr)
        sys.exit(fault.exit_code)
