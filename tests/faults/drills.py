"""What the fault drills share: a small run, and a project whose run is disturbed at moments that are known and started again."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sproutlm.train.checkpoint import verify
from sproutlm.train.metrics import MetricsLog, read_metrics
from sproutlm.verify.processes import Launcher, Process, last_step, log_of

STEPS, SAVE_EVERY, MICRO_BATCHES = 12, 3, 3

RECIPE = f"""
name: drill
seed: 3
data:
  train: text.jsonl
  validation: {{rows: 4}}
  seq_len: 32
  workers: 1
tokenizer: {{vocab_size: 300}}
model: {{dim: 16, n_layers: 2, n_heads: 2, ffn_dim: 32, max_seq_len: 32, dropout: 0.1}}
objective: pausing:objective
schedule: {{warmup: 2}}
train:
  steps: {STEPS}
  batch_tokens: 192
  micro_batch: 2
  compute: float32
  device: cpu
  log_every: 1
  validate_every: 6
  save_every: {SAVE_EVERY}
  keep_last: 9
sample: {{prompts: []}}
"""

# Stops at the micro-batch that the file ``pause`` names, says so, and goes on when it may: everything happens between two
# micro-batches of a step that is known.
PAUSING = """
import os, time
from sproutlm.objectives.next_token import next_token

pause = int(open("pause").read()) if os.path.exists("pause") else 0
begun = 0

def objective(model, batch):
    global begun
    if model.training:
        begun += 1
        if begun == pause:
            open("paused", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.002)
    return next_token(model, batch)
"""


def write_text(path: Path) -> None:
    rng = random.Random(0)
    words = "the tree river stone bird house sings grows falls runs near under and a 树 河 石 鸟 在 旁边 。".split()
    rows = [{"text": " ".join(rng.choice(words) for _ in range(rng.randint(4, 40)))} for _ in range(40)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal: tensors of the last checkpoint, the final model, the metrics but for times and memory."""
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    assert verify(last) is None
    files = [last / "model.safetensors", last / "optimizer.safetensors", *sorted((run / "model").iterdir())]
    rows = [
        {k: v for k, v in r.items() if k not in MetricsLog.CLOCK_FIELDS} for r in read_metrics(run / "metrics.jsonl")
    ]
    return {"metrics": rows} | {f.name: f.read_bytes() for f in files}


class Drill:
    """A project folder whose run is started, disturbed and started again by the same command."""

    def __init__(self, folder: Path, launch: Launcher, expected: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.launch, self._expected = folder, launch, expected
        self.run = folder / "run"
        self._read = 0

    def start(self, *arguments: str, first: str = "") -> Process:
        return self.launch.train(self.folder, *arguments, first=first)

    def ends(self, code: int, *sentences: str) -> str:
        """Start the run again: it ends by ``code`` and prints each sentence. Gives what it printed."""
        return self.ended(self.start(), code, *sentences)

    def ended(self, process: Process, code: int, *sentences: str) -> str:
        """Wait for the process: it ends by ``code``, without a traceback, and has printed each sentence."""
        found = process.wait()
        printed = log_of(self.folder)[self._read :]
        self._read += len(printed)
        assert found == code, printed
        assert "Traceback" not in printed, printed
        for sentence in sentences:
            assert sentence in printed, f"{sentence!r} was not said:\n{printed}"
        return printed

    def paused(self, step: int, *arguments: str) -> Process:
        """A run from its beginning that waits between the micro-batches of ``step`` (from 1) until ``go``."""
        (self.folder / "pause").write_text(str((step - 1) * MICRO_BATCHES + 2))
        process = self.start(*arguments)
        assert process.until((self.folder / "paused").exists), log_of(self.folder)
        return process

    def go(self) -> None:
        (self.folder / "pause").unlink()
        (self.folder / "go").touch()

    def saved(self) -> list[int]:
        """Steps of the checkpoints that are whole."""
        found = sorted((self.run / "checkpoints").glob("step-*"))
        return [int(path.name[5:]) for path in found if verify(path) is None]

    def as_if_undisturbed(self) -> None:
        assert last_step(self.run) == STEPS
        got, expected = outcome(self.run), self._expected()
        assert got.keys() == expected.keys()
        for name in expected:
            assert got[name] == expected[name], f"{name} differs"


Mount = Callable[[Path, str], None]


def fill(folder: Path, leave: int) -> Path:
    """A file that takes the room of the file system, all but ``leave`` bytes."""
    state = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))
    return filler
