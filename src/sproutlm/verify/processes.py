"""Runs of ``sprout`` as processes of their own: to be started, watched, killed or asked to stop, and started again.

Importing torch takes seconds. A launcher imports it once, computes nothing itself, and forks each run off; what a run does
from there is what ``python -m sproutlm`` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SproutError

PATIENCE = 120.0  # seconds for anything that takes one on an idle machine

LAUNCHER = """
import json, os, sys
import matplotlib.pyplot, torch._dynamo
import sproutlm.cli, sproutlm.pipeline.train, sproutlm.infer.engine, sproutlm.eval.bits_per_byte
import sproutlm.export.huggingface
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.chdir(job["cwd"])
        sys.path.insert(0, job["cwd"])
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.close(0)
        if job["first"]:
            __import__(job["first"])
        code = sproutlm.cli.main(job["arguments"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
"""


def environment() -> dict[str, str]:
    """One thread, no network, and this package, wherever it lies."""
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


class Process:
    """One run: how to look at it, end it, and learn how it ended. What it prints is added to ``folder/log``."""

    def __init__(self, folder: Path, pid: int, wait: Callable[[], int], run: str = "run") -> None:
        self.folder, self.pid, self._wait = folder, pid, wait
        self.run = folder / run
        self._code: int | None = None

    def wait(self) -> int:
        """Its exit code; of one that a signal ended, minus the signal's number."""
        if self._code is None:
            self._code = self._wait()
        return self._code

    def alive(self) -> bool:
        if self._code is not None:
            return False
        try:  # a zombie has ended, whether or not its parent has asked yet
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def send(self, number: signal.Signals) -> bool:
        """Whether the signal reached a live process."""
        if not self.alive():
            return False
        os.kill(self.pid, number)
        return True

    def until(self, reached: Callable[[], bool], pause: float = 0.0005) -> bool:
        """Wait until ``reached``; False when the process ended before."""
        end = time.monotonic() + PATIENCE
        while not reached():
            if not self.alive():
                return False
            assert time.monotonic() < end, f"nothing happened; the log says:\n{log_of(self.folder)}"
            time.sleep(pause)
        return True

    def saving(self) -> bool:
        return any((self.run / "checkpoints").glob(".step-*"))

    def step(self) -> int:
        """Of the newest checkpoint, 0 where there is none."""
        return last_step(self.run)


def log_of(folder: Path) -> str:
    """All that the runs started in ``folder`` have printed."""
    return (folder / "log").read_text(encoding="utf-8") if (folder / "log").exists() else ""


def last_step(run: Path) -> int:
    """Of the newest checkpoint in a run folder, 0 where there is none; its content is not looked at."""
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)


class Launcher:
    """A process that has imported torch and forks runs off."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[Process] = []
        if self._answer() != "ready":
            raise SproutError("no process could be started that imports torch and sproutlm; its fault is printed above")

    def start(self, folder: Path, *arguments: str, first: str = "") -> Process:
        """``sprout ARGUMENTS`` in ``folder``; ``first``: a module there that is imported before."""
        self._ask({"cwd": str(folder), "arguments": list(arguments), "first": first})
        pid = int(self._answer())
        process = Process(folder, pid, lambda: self._wait(pid))
        self._started.append(process)
        return process

    def train(self, folder: Path, *arguments: str, first: str = "") -> Process:
        """``sprout train recipe.yaml run=run ARGUMENTS`` in ``folder``."""
        return self.start(folder, "train", "recipe.yaml", "run=run", *arguments, first=first)

    def close(self) -> None:
        """End what still runs, and the launcher."""
        for process in self._started:
            process.send(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE)

    def _wait(self, pid: int) -> int:
        self._ask({"wait": pid})
        return int(self._answer())

    def _ask(self, job: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def launcher() -> Iterator[Launcher]:
    """A launcher that is closed at the end. SproutError where processes cannot fork (Windows)."""
    if not hasattr(os, "fork"):
        raise SproutError("this needs a system whose processes can fork and be signalled (Linux, macOS)")
    made = Launcher()
    try:
        yield made
    finally:
        made.close()


def start_fresh(folder: Path, *arguments: str) -> Process:
    """``sprout ARGUMENTS`` through ``python -m sproutlm``, as a person starts it."""
    with open(folder / "log", "a", encoding="utf-8") as log:
        command: Sequence[str] = [sys.executable, "-m", "sproutlm", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
    return Process(folder, process.pid, lambda: process.wait(timeout=PATIENCE))
