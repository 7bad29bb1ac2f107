"""``sprout verify resume``: a run that was killed or told to stop, and started again, ends as one that nobody disturbed.

Every stage of training, with both optimizers, in float32 and bf16: real processes on a small world made on the spot, dropout
on, several micro-batches a step. The signals come from inside a step, at a micro-batch that is counted, so that they hit the
same moment on any machine.
"""

from __future__ import annotations

import json
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import __version__
from ..config.schema import Recipe, TrainConfig
from ..data.synth import synthesize
from ..errors import SproutError
from ..train.checkpoint import verify
from ..train.metrics import MetricsLog, read_metrics
from .measure import Measure, none_of
from .model import Say, guarded, line_of, result, summary
from .processes import Launcher, last_step, launcher, log_of

STAGES: tuple[str, ...] = get_args(Recipe.model_fields["stage"].annotation)
STEPS, SAVE_EVERY, MICRO_BATCHES, MICRO_ROWS, SEQ_LEN = 8, 3, 3, 2, 64
HIT = 4 * MICRO_BATCHES + 2  # the second micro-batch of the fifth step, two steps before a regular save
MODEL = {"dim": 16, "n_layers": 2, "n_heads": 2, "ffn_dim": 32, "max_seq_len": SEQ_LEN, "dropout": 0.1}
SETTINGS = (("muon", "float32"), ("muon", "bf16"), ("adamw", "float32"), ("adamw", "bf16"))
FEWER = SETTINGS[1:3]  # each optimizer and each compute type once

# The objective of every run here: leaves a line with the row ids of each micro-batch that begins, and sends its own process
# the signal that the file ``hit`` asks for, at the micro-batch that it names.
WITNESS = """
import json, os
from {module} import {name} as plain

asked = json.load(open("hit")) if os.path.exists("hit") else {{}}
begun = 0

def objective(model, batch):
    global begun
    if model.training:
        begun += 1
        line = json.dumps([os.getpid(), begun, batch.row_ids.tolist()]) + "\\n"
        descriptor = os.open("witness.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        if begun == asked.get("micro_batch"):
            os.kill(os.getpid(), asked["signal"])
    return plain(model, batch)
"""


@dataclass(frozen=True)
class StageRecipe:
    """What a stage trains on (a file of the embedded world) and by (module, function); ``fields`` of its recipe besides."""

    file: str
    objective: tuple[str, str] = ("sproutlm.objectives.next_token", "next_token")
    fields: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "pretrain": StageRecipe("pretrain.jsonl"),
    "sft": StageRecipe("sft.jsonl", fields={"init_from": "../base/run"}),
}


@dataclass(frozen=True)
class Way:
    """How a run is interrupted, the exit code by which it must end, and the (optimizer, compute) that go through it."""

    name: str
    number: signal.Signals
    code: int
    settings: tuple[tuple[str, str], ...] = SETTINGS
    async_save: bool = False


WAYS = (
    Way("kill -9 in a step", signal.SIGKILL, -int(signal.SIGKILL)),
    Way("SIGTERM in a step", signal.SIGTERM, 130, FEWER),
)
ASYNC_WAYS = (Way("kill -9, async_save", signal.SIGKILL, -int(signal.SIGKILL), FEWER, True),)


def ways() -> tuple[Way, ...]:
    return (*WAYS, *ASYNC_WAYS) if "async_save" in TrainConfig.model_fields else WAYS


def verify_resume(stage: str = "all", say: Say = lambda line: None) -> dict[str, Any]:
    """Every promise for ``stage``, or for all; each result is told to ``say`` as it is found.

    Returns what ``verify_model`` returns, ``family`` being the stage. SproutError for a stage that is not known.
    """
    if stage not in (*STAGES, "all"):
        raise SproutError(f"--stage {stage}: not known; known are {', '.join(STAGES)} and all")
    started, checks = time.perf_counter(), list[dict[str, Any]]()
    say(f"sproutlm {__version__}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    with tempfile.TemporaryDirectory(prefix="sprout-resume-") as folder, launcher() as launch:
        runs = Runs(Path(folder), launch)
        for name in STAGES if stage == "all" else (stage,):
            settings = "; ".join(f"{way.name}: {', '.join(map(' '.join, way.settings))}" for way in ways())
            say(f"{name}: {STEPS} steps of {MICRO_BATCHES} micro-batches, dropout {MODEL['dropout']} ({settings})")
            if name not in RECIPES:
                missing = none_of([f"verify/resume.py has no recipe for the stage {name}"])
                checks.append(result(name, "it goes on where it was", [(name, missing)]))
                say(line_of(checks[-1]))
                continue
            for check in promises_of(runs, name):
                checks.append(check)
                say(line_of(check))
    return summary(checks, started)


def promises_of(runs: Runs, stage: str) -> Iterator[dict[str, Any]]:
    """The lines of one stage: every way of being interrupted, the worst of all settings in each."""
    for way in ways():
        found: dict[str, list[tuple[str, Measure]]] = {promise: [] for promise in PROMISES}
        for setting in way.settings:
            name = ", ".join(setting)
            try:
                pair = runs.straight(stage, setting), runs.interrupted(stage, setting, way)
            except SproutError as error:
                for measured in found.values():
                    measured.append((name, none_of([str(error)])))
                continue
            for promise, measure in PROMISES.items():
                found[promise].append((name, guarded(partial(measure, *pair))))
        for promise, measured in found.items():
            yield result(stage, f"{way.name}: {promise}", measured)


# --- runs ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A finished run: its folder, and the step at which each of its processes began, in order."""

    run: Path
    began: list[int]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Of the last checkpoint; SproutError where it is damaged or not that of the last step."""
        folder = self.run / "checkpoints" / f"step-{STEPS:08d}"
        fault = verify(folder)
        if fault is not None:
            raise SproutError(fault)
        return load_file(folder / name)

    def figures(self) -> list[dict[str, Any]]:
        rows = read_metrics(self.run / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in MetricsLog.CLOCK_FIELDS} for row in rows]

    def row_ids(self) -> list[tuple[int, list[list[int]]]]:
        """(step, row ids of each of its micro-batches) in the order in which they were computed, steps cut off included."""
        lines = (self.run.parent / "witness.jsonl").read_text().splitlines()
        processes: dict[int, list[list[int]]] = {}
        for pid, _, rows in map(json.loads, lines):
            processes.setdefault(pid, []).append(rows)
        return [
            (first + i // MICRO_BATCHES, parts[i : i + MICRO_BATCHES])
            for first, parts in zip(self.began, processes.values(), strict=True)
            for i in range(0, len(parts), MICRO_BATCHES)
        ]


class Runs:
    """Makes the runs that are compared, in ``folder``. Undisturbed ones are made once for each stage and setting."""

    def __init__(self, folder: Path, launch: Launcher) -> None:
        self.folder, self.launch = folder, launch
        self._straight: dict[tuple[str, tuple[str, str]], Ran] = {}
        self._numbered = 0

    def base(self) -> Path:
        """One step of pretraining: the tokenizer of every run, and the model that later stages start from."""
        folder = self.folder / "base"
        if not (folder / "run" / "model").is_dir():
            synthesize(self.folder / "world", seed=1, size="tiny")
            fields = self._fields("pretrain", "muon", "float32")
            fields["train"]["steps"], fields["tokenizer"] = 1, {"vocab_size": 300}
            self._write(folder, "pretrain", fields)
            self._train(folder, 0)
        return folder

    def straight(self, stage: str, setting: tuple[str, str]) -> Ran:
        key = stage, setting
        if key not in self._straight:
            folder = self._new(stage, setting)
            self._train(folder, 0)
            self._straight[key] = Ran(folder / "run", [0])
        return self._straight[key]

    def interrupted(self, stage: str, setting: tuple[str, str], way: Way) -> Ran:
        """A run that a signal ended in the middle of a step, and that the same command took to its end."""
        folder = self._new(stage, setting, **({"async_save": True} if way.async_save else {}))
        hit = folder / "hit"
        hit.write_text(json.dumps({"micro_batch": HIT, "signal": int(way.number)}))
        self._train(folder, way.code)
        hit.unlink()
        reached = last_step(folder / "run")
        if not way.async_save and not 0 < reached < STEPS:
            raise SproutError(f"it was to be interrupted in its middle and was at step {reached} of {STEPS}")
        self._train(folder, 0)
        return Ran(folder / "run", [0, reached])

    def _new(self, stage: str, setting: tuple[str, str], **train: Any) -> Path:
        self.base()
        self._numbered += 1
        folder = self.folder / f"{stage}-{self._numbered}"
        fields = self._fields(stage, *setting)
        fields["train"] |= train
        self._write(folder, stage, fields)
        return folder

    def _fields(self, stage: str, optimizer: str, compute: str) -> dict[str, Any]:
        """A recipe's fields; paths are those seen from a run's own folder."""
        train = {
            "steps": STEPS,
            "batch_tokens": MICRO_BATCHES * MICRO_ROWS * SEQ_LEN,
            "micro_batch": MICRO_ROWS,
            "compute": compute,
            "device": "cpu",
            "log_every": 1,
            "validate_every": 4,
            "save_every": SAVE_EVERY,
        }
        if "async_save" in TrainConfig.model_fields:
            train["async_save"] = False
        made: dict[str, Any] = {
            "name": "resumed",
            "stage": stage,
            "seed": 3,
            "data": {
                "train": {"path": f"../world/{RECIPES[stage].file}", "max_rows": 80},
                "validation": {"rows": 4},
                "seq_len": SEQ_LEN,
                "workers": 1,
                "cache": f"../data-{stage}",
            },
            "tokenizer": {"path": "../base/run/tokenizer"},
            "model": MODEL,
            "objective": "witness:objective",
            "optimizer": {"name": optimizer, "lr": 0.01},
            "schedule": {"warmup": 2},
            "train": train,
            "sample": {"prompts": []},
        }
        return made | RECIPES[stage].fields

    def _write(self, folder: Path, stage: str, fields: dict[str, Any]) -> None:
        folder.mkdir()
        (folder / "recipe.yaml").write_text(json.dumps(fields), encoding="utf-8")  # JSON is YAML
        module, name = RECIPES[stage].objective
        (folder / "witness.py").write_text(WITNESS.format(module=module, name=name), encoding="utf-8")

    def _train(self, folder: Path, expected: int) -> None:
        """Start the run and wait; SproutError where it ends by another exit code than expected."""
        code = self.launch.train(folder).wait()
        if code != expected:
            last = (log_of(folder).strip().splitlines() or ["nothing was printed"])[-1]
            raise SproutError(f"`sprout train` ended with exit code {code} instead of {expected}: {last[:200]}")


# --- what must be equal -------------------------------------------------------------------------------------------------


def same_tensors(name: str, straight: Ran, interrupted: Ran) -> Measure:
    """How many values of the last checkpoint's file ``name`` differ in their bits."""
    return _same_values(straight.tensors(name), interrupted.tensors(name))


def _same_values(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Measure:
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return Measure(math.inf, ok=False, note="other tensors, or of other shapes")
    wrong = {
        name: int((_bits(ours[name]) != _bits(theirs[name])).any(-1).sum())
        for name in ours
        if not torch.equal(_bits(ours[name]), _bits(theirs[name]))
    }
    total = sum(tensor.numel() for tensor in ours.values())
    note = (
        f"{sum(wrong.values())} of {total} values in {len(wrong)} tensors, {next(iter(wrong))} first" if wrong else ""
    )
    return Measure(float(sum(wrong.values())), ok=not wrong, note=note)


def _bits(tensor: Tensor) -> Tensor:
    """(values, bytes of each): NaN equals itself, and 0 is not -0."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def same_figures(straight: Ran, interrupted: Ran) -> Measure:
    """How many rows of metrics.jsonl differ: loss, gradient norm, rates, validation; times and memory left out."""
    ours, theirs = straight.figures(), interrupted.figures()
    if len(ours) != len(theirs):
        return none_of([f"{len(theirs)} rows of metrics instead of {len(ours)}"])
    return none_of(
        f"step {a['step']}: {key} is {b.get(key)} instead of {a.get(key)}"
        for a, b in zip(ours, theirs, strict=True)
        if a != b
        for key in [next(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))]
    )


def same_rows(straight: Ran, interrupted: Ran) -> Measure:
    """How many steps were computed on other rows; a step that was cut off counts as far as it came, and again in whole."""
    expected = dict(straight.row_ids())
    if sorted(expected) != list(range(STEPS)):
        return none_of([f"the undisturbed run has steps {sorted(expected)}"])
    seen = interrupted.row_ids()
    wrong = [f"step {step + 1} has rows {parts}" for step, parts in seen if parts != expected[step][: len(parts)]]
    whole = {step for step, parts in seen if len(parts) == MICRO_BATCHES}
    wrong += [f"step {step + 1} was never computed in whole" for step in range(STEPS) if step not in whole]
    return none_of(wrong)


PROMISES: dict[str, Callable[[Ran, Ran], Measure]] = {
    "every weight, bit for bit": partial(same_tensors, "model.safetensors"),
    "optimizer state, bit for bit": partial(same_tensors, "optimizer.safetensors"),
    "losses and figures of every step": same_figures,
    "the same rows in every step": same_rows,
}
