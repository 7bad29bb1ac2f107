"""What a checkpoint costs: writing it, the loop's stall while it is written beside it, and coming back to it.

    python benchmarks/checkpoint.py --json benchmarks/results/checkpoint.json [--rounds 5] [--folder DIR]

GPT-2's shape (124 M parameters), float32 masters and AdamW's two averages: 1.5 GB, in a temporary folder of a real disk, which is
removed afterwards. In turns, whose order alternates, each of these is done once a round (the three that write: three times), and medians are given,
of ratios those of the turns' own:

- ``bytes``: as many bytes are written to one file and synced: what the disk takes at least.
- ``libraries``: ``safetensors.torch.save_file`` of the weights and ``torch.save`` of the optimizer, synced; no checksums.
- ``ours``: ``Checkpointer.save``.
- ``beside``: ``Trainer.save`` with ``train.async_save``, then a real step: how long the loop stands still (in the call, and before
  its update), until the file is durable, and the step's own time beside one without a save.
- ``read``: the checkpoint's files are read, out of the page cache first.
- ``resume``: as the trainer: the newest checkpoint is found, hashed, and copied into masters and optimizer; page cache as before.
- ``process``: the same in a process of its own, from its start to where the first step would begin.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from contest import commit, device_name
from safetensors.torch import save_file

from sproutlm.atomic import fsync_path
from sproutlm.config.model import ModelConfig
from sproutlm.config.presets import PRESETS
from sproutlm.config.schema import OptimizerConfig, ScheduleConfig, TrainConfig
from sproutlm.model import Transformer
from sproutlm.objectives.next_token import next_token
from sproutlm.pipeline.probe import FullRows
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.metrics import MetricsLog
from sproutlm.train.trainer import Trainer

SEQ_LEN = 256  # one row of them is a step: the fewer, the less time the copy has before the update


def trainer_in(folder: Path) -> Trainer:
    """A trainer of GPT-2's shape in ``folder``; nothing of it has run yet."""
    config = ModelConfig(**PRESETS["gpt2"].shape)
    return Trainer(
        Transformer(config).init_weights(1),
        next_token,
        FullRows(1, SEQ_LEN, config.vocab_size, False),
        optimizer=OptimizerConfig(name="adamw", lr=1e-4),
        schedule=ScheduleConfig(warmup=2),
        config=TrainConfig(steps=10**6, batch_tokens=SEQ_LEN, async_save=True),
        total_steps=10**6,
        micro_rows=1,
        seed=1,
        compute=torch.float32,
        checkpointer=Checkpointer(folder / "checkpoints", 1, say=lambda sentence: None),
        metrics=MetricsLog(folder / "metrics.jsonl"),
        checkpoint_files={"model_config.json": config.model_dump_json(indent=1)},
        identity={},
        say=lambda sentence: None,
    )


class Rounds:
    """The contestants over one trainer; each gives the figures of one round by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer = trainer_in(folder)
        self.trainer.model.train()
        self.step()
        tensors = [*self.trainer.weights.masters.values(), *self.trainer.optimizers.tensors().values()]
        self.size = sum(tensor.nbytes for tensor in tensors)
        self.chunk = os.urandom(8 * 2**20)

    def step(self) -> float:
        """One step of the trainer, in seconds."""
        started = time.perf_counter()
        self.trainer.train_step(self.trainer.state.step)
        self.trainer.state.step += 1
        return time.perf_counter() - started

    def bytes(self) -> dict[str, float]:
        path = self.folder / "plain"
        with timed() as seconds, open(path, "wb", buffering=0) as file:
            for _ in range(self.size // len(self.chunk)):
                file.write(self.chunk)
            file.write(self.chunk[: self.size % len(self.chunk)])
            os.fsync(file.fileno())
        path.unlink()
        return {"bytes_seconds": seconds[0]}

    def libraries(self) -> dict[str, float]:
        place = self.folder / "libraries"
        place.mkdir()
        with timed() as seconds:
            weights = {name: master.detach() for name, master in self.trainer.weights.masters.items()}
            save_file(weights, place / "model.safetensors")
            torch.save([o.state_dict() for o in self.trainer.optimizers.optimizers], place / "optimizer.pt")
            for path in [*place.iterdir(), place]:
                fsync_path(path)
        shutil.rmtree(place)
        return {"libraries_seconds": seconds[0]}

    def ours(self) -> dict[str, float]:
        shutil.rmtree(self.trainer.checkpointer.folder, ignore_errors=True)
        with timed() as seconds:
            self.trainer.save()
        return {"ours_seconds": seconds[0]}

    def beside(self) -> dict[str, float]:
        shutil.rmtree(self.trainer.checkpointer.folder, ignore_errors=True)
        alone, saver = self.step(), self.trainer._saver
        waited: list[float] = []
        wait = saver.wait_for_copy

        def timed_wait() -> None:
            with timed() as seconds:
                wait()
            waited.append(seconds[0])

        saver.wait_for_copy = timed_wait  # type: ignore[method-assign]
        with timed() as durable:
            with timed() as call:
                self.trainer.save(durable=False)
            step = self.step()
            saver.finish()
        del saver.wait_for_copy  # type: ignore[method-assign]
        return {
            "stall_seconds": call[0] + sum(waited),
            "durable_seconds": durable[0],
            "step_alone_seconds": alone,
            "step_beside_seconds": step,
        }

    def read(self) -> dict[str, float]:
        self.forget_pages()
        with timed() as seconds:
            for path in self.tensor_files():
                with open(path, "rb", buffering=0) as file:
                    buffer = bytearray(len(self.chunk))
                    while file.readinto(buffer):
                        pass
        return {"read_seconds": seconds[0]}

    def resume(self) -> dict[str, float]:
        self.forget_pages()
        trainer, place = self.trainer, self.trainer.checkpointer.folder
        with timed() as seconds:
            found = Checkpointer(place).latest()
            assert found is not None
            hashed = time.perf_counter()
            trainer.weights.load(found.model_tensors())
            trainer.optimizers.load_tensors(found.optimizer_tensors())
            loading = time.perf_counter() - hashed
        return {"resume_seconds": seconds[0], "resume_loading_seconds": loading}

    def process(self) -> dict[str, float]:
        self.forget_pages()
        with timed() as seconds:
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(torch.get_num_threads()),
                "--resume-in",
                str(self.folder),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        building, resuming = map(float, done.stdout.split())
        return {
            "process_seconds": seconds[0],
            "process_building_seconds": building,
            "process_resume_seconds": resuming,
        }

    def tensor_files(self) -> list[Path]:
        return sorted(self.trainer.checkpointer.folder.glob("step-*/*.safetensors"))

    def forget_pages(self) -> None:
        """What is read next comes from the disk, as far as the kernel follows the advice."""
        for path in self.tensor_files():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def timed() -> Iterator[list[float]]:
    """Gives a list that holds the seconds of the block when it has ended."""
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def resume_here(folder: Path) -> None:
    """A process that goes on: prints the seconds of building the model, and of the checkpoint's part."""
    with timed() as building:
        trainer = trainer_in(folder)
    with timed() as seconds:
        assert trainer._resume() > 0
    print(building[0], seconds[0])


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    subject = Rounds(folder)
    found: dict[str, list[float]] = {}
    writes: list[Callable[[], dict[str, float]]] = [subject.bytes, subject.ours, subject.libraries]
    after = [subject.read, subject.resume, subject.process]  # of a checkpoint that is there
    for number in range(rounds + 1):
        turn = [*writes, *writes[::-1], *writes]
        for part in [subject.beside, *(turn[::-1] if number % 2 else turn), *(after[::-1] if number % 2 else after)]:
            gc.collect()
            os.sync()
            for name, value in part().items():
                if number:  # the first round is not counted: pages are laid out, copies are made for the first time
                    found.setdefault(name, []).append(value)
                print(f"round {number}: {name} {value:.3f}", file=sys.stderr, flush=True)
    median = {name: statistics.median(values) for name, values in found.items()}
    subject.trainer.close()
    return {
        "bytes": subject.size,
        "median": median,
        "ours_over_bytes": ratio(found, "ours_seconds", "bytes_seconds"),
        "libraries_over_bytes": ratio(found, "libraries_seconds", "bytes_seconds"),
        "libraries_over_ours": ratio(found, "libraries_seconds", "ours_seconds"),
        "stall_over_ours": median["stall_seconds"] / median["ours_seconds"],
        "resume_less_reading_seconds": median["resume_seconds"] - median["read_seconds"],
        "process_less_reading_seconds": median["process_seconds"] - median["read_seconds"],
        "rounds": found,
    }


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the ratios of what was measured one after the other."""
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that compute a step")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made: on the disk to be measured")
    parser.add_argument("--resume-in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.resume_in:
        resume_here(args.resume_in)
        return
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=args.folder) as place:
        found = measure(Path(place), args.rounds)
    report = {
        "command": f"python benchmarks/checkpoint.py --json OUT --rounds {args.rounds} --threads {args.threads}",
        "commit": commit(),
        "date": str(date.today()),
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in ("torch", "safetensors")},
        "load_average": [load_before, os.getloadavg()[0]],
        **found,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
