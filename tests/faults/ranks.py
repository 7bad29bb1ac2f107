"""Runs of several processes for the drills: a tiny project, faults that strike one rank at a known micro-batch, and their end.

A run is a real ``sprout launch``: torch's elastic agent starts, watches, restarts and ends the ranks. They are forked from a
process that has imported torch, where ``fresh`` is not asked for: that is all ``warm_launch`` changes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drills import write_text

from sproutlm.train.checkpoint import Checkpoint, verify
from sproutlm.train.metrics import MetricsLog, read_metrics
from sproutlm.verify.processes import PATIENCE, Launcher, Process, environment, last_step, log_of

STEPS, SAVE_EVERY, ROWS = 8, 3, 8
LIMIT = 30_000  # bytes: more than the log has, fewer than a rank's part of a checkpoint

RECIPE = f"""
name: ranks
seed: 3
data:
  train: text.jsonl
  validation: {{rows: 4}}
  seq_len: 32
  workers: 1
tokenizer: {{vocab_size: 300}}
model: {{dim: 32, n_layers: 2, n_heads: 2, ffn_dim: 64, max_seq_len: 32}}
objective: acting:objective
schedule: {{warmup: 2}}
parallel: {{timeout: 30}}
train:
  steps: {STEPS}
  batch_tokens: {32 * ROWS}
  micro_batch: 1
  compute: float32
  device: cpu
  log_every: 1
  validate_every: 8
  save_every: {SAVE_EVERY}
  keep_last: 9
sample: {{prompts: []}}
"""

# Notes each micro-batch's rank and rows, and does once what ``plan.json`` says: {rank, at, act}, ``at`` a micro-batch, from 1.
ACTING = """
import ctypes, json, os, resource, signal, subprocess, time
from sproutlm.objectives.next_token import next_token

rank, begun = int(os.environ.get("RANK", "0")), 0
with open(f"pid-{rank}", "w") as f:
    f.write(str(os.getpid()))
plan = json.load(open("plan.json")) if os.path.exists("plan.json") else {}
if plan.get("rank") == rank and plan["act"] == "elsewhere":  # a run folder of its own, as on a host without shared storage
    assert ctypes.CDLL(None).unshare(0x20000) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "run"], check=True)

def objective(model, batch):
    global begun
    factor = 1.0
    if model.training:
        begun += 1
        if plan.get("rank") == rank and plan["at"] == begun:
            os.rename("plan.json", "acted.json")
            if plan["act"] == "wait":
                while not os.path.exists("go"):
                    time.sleep(0.005)
            elif plan["act"] == "full":  # whatever this rank writes from here on ends at so many bytes
                resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
            elif plan["act"] == "nan":
                factor = float("nan")
            else:
                os.kill(os.getpid(), getattr(signal, plan["act"]))
        with open(f"rows-{rank}", "a") as f:
            f.write(json.dumps([begun, batch.row_ids.tolist()]) + "\\n")
    loss, count, metrics = next_token(model, batch)
    return loss * factor, count, metrics
"""

# Imported before the command: ``sprout launch`` as it is, but ranks are forked in place of started with an interpreter each.
WARM = """
import ctypes, os, signal, sys
import torch.distributed.run as torchrun
import sproutlm.cli, sproutlm.distributed.heartbeat

plain = torchrun.config_from_args

def rank_main(*arguments):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = sproutlm.cli.main(arguments)
    sys.stdout.flush(), sys.stderr.flush()
    if code:
        os._exit(code)

def forked(args):
    config, _, command = plain(args)
    config.start_method = "fork"
    return config, rank_main, command[command.index("sproutlm") + 1:]

torchrun.config_from_args = forked
"""


def write_project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "text.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "acting.py").write_text(ACTING.replace("BYTES", str(LIMIT)), encoding="utf-8")
    (folder / "warm_launch.py").write_text(WARM, encoding="utf-8")
    return folder


def at_step(step: int, processes: int) -> int:
    """The first micro-batch of ``step`` (from 1) on a rank that shares the rows with ``processes`` in all."""
    return (step - 1) * ROWS // processes + 1


class RanksDrill:
    """A project folder whose run is started in several processes, disturbed, and started again by the same command."""

    def __init__(self, folder: Path, launch: Launcher) -> None:
        self.folder, self.launch = folder, launch
        self.run = folder / "run"
        self._read = 0

    def start(self, processes: int, *arguments: str, restarts: int = 0, fresh: bool = False) -> Process:
        """``sprout launch``, or ``sprout train`` where one process is asked for."""
        train = ["recipe.yaml", "run=run", *arguments]
        if processes == 1:
            return self.launch.start(self.folder, "train", *train)
        command = ["launch", *train, "--processes", str(processes), "--max-restarts", str(restarts)]
        if not fresh:
            return self.launch.start(self.folder, *command, first="warm_launch")
        with open(self.folder / "log", "a", encoding="utf-8") as log:
            made = subprocess.Popen(
                [sys.executable, "-m", "sproutlm", *command],
                cwd=self.folder, env=environment(), stdout=log, stderr=log,
            )  # fmt: skip
        return Process(self.folder, made.pid, lambda: made.wait(timeout=2 * PATIENCE))

    def plan(self, rank: int, at: int, act: str) -> None:
        for name in ("acted.json", "go"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "plan.json").write_text(json.dumps({"rank": rank, "at": at, "act": act}))

    def acted(self, process: Process) -> bool:
        return process.until((self.folder / "acted.json").exists)

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid-{rank}").read_text())

    def ends(self, processes: int, *arguments: str, code: int = 0, restarts: int = 0) -> str:
        return self.ended(self.start(processes, *arguments, restarts=restarts), code)

    def printed(self) -> str:
        """What the run that is under way, or has just ended, has printed."""
        return log_of(self.folder)[self._read :]

    def ended(self, process: Process, code: int) -> str:
        """What the run has printed once it has ended by ``code``, without a traceback."""
        found = process.wait()
        printed = self.printed()
        self._read += len(printed)
        assert found == code, f"{found} in place of {code}:\n{printed}"
        ours = re.sub(r"(?m)^[EWI]\d{4} .*$", "", printed)  # torch's own log shows where a forked rank was missed
        assert "Traceback" not in ours, printed
        return printed

    def saved(self) -> list[int]:
        found = sorted((self.run / "checkpoints").glob("step-*"))
        return [int(path.name[5:]) for path in found if verify(path) is None]

    def outcome(self) -> dict[str, Any]:
        """What must be equal where ranks are as many: the last checkpoint's tensors and the figures but for the clock's."""
        assert last_step(self.run) == STEPS
        path = self.run / "checkpoints" / f"step-{STEPS:08d}"
        assert verify(path) is None
        checkpoint = Checkpoint(path, STEPS)
        tensors = {**checkpoint.model_tensors(), **checkpoint.optimizer_tensors()}
        return {"metrics": self.figures()} | {name: value.numpy().tobytes() for name, value in tensors.items()}

    def figures(self) -> list[dict[str, Any]]:
        rows = read_metrics(self.run / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in MetricsLog.CLOCK_FIELDS} for row in rows]

    def losses(self) -> list[float]:
        rows = [row for row in read_metrics(self.run / "metrics.jsonl") if "loss" in row]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return [row["loss"] for row in rows]

    def rows(self) -> list[int]:
        """Rows that any rank has trained on since the start, and forgets them."""
        found = []
        for path in sorted(self.folder.glob("rows-*")):
            found += [row for line in path.read_text().splitlines() for row in json.loads(line)[1]]
            path.unlink()
        return sorted(found)


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name] == expected[name], f"{name} differs"


def living(folder: Path) -> list[int]:
    """Processes whose current folder lies in ``folder``: ranks and agents of the runs there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = Path(os.readlink(path / "cwd"))
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX" and (here == folder or folder in here.parents):
            found.append(int(path.name))
    return found


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """At the end every process that still runs in ``folder`` is killed, frozen ones too."""
    try:
        yield
    finally:
        end = time.monotonic() + 10
        while (left := [pid for pid in living(folder) if pid != os.getpid()]) and time.monotonic() < end:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
