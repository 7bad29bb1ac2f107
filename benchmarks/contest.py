"""Contestants that take turns: each in a process of its own, asked line by line, answering in JSON.

Nothing here needs more than torch, so that a contestant may live in another Python than the one that asks.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

SPIN_SECONDS = 0.3  # the threads of a parallel region spin a moment before they sleep


class Ended(SystemExit):
    """A contestant's process ended before it answered; its message says with what last word."""


class Contestant:
    """A process that answers each line of its input with a line of JSON. Its first line, unasked, is ``about``."""

    def __init__(self, command: list[str]) -> None:
        self.last_words = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.last_words, text=True
        )
        self.about = self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line; ``Ended`` where there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.last_words.seek(0)
        said = [line.strip() for line in self.last_words.read().splitlines() if line.strip()]
        command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
        raise Ended(f"a process ended early ({said[-1][:200] if said else 'without a word'}); its line: {command}")

    def ask(self, line: str) -> dict[str, Any]:
        """What it answers to ``line``."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() tells with what it ended
        found = self.answer()
        time.sleep(SPIN_SECONDS)
        return found

    def end(self) -> None:
        """Close its input, at which it ends; wait for that."""
        self.process.communicate()
        self.last_words.close()


def channel() -> TextIO:
    """The contestant's side: where answers go. Whatever else is printed from now on goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return out


class Turns:
    """The contestant's side of a training loop: holds it before a step until a reading is asked for, and answers with
    the reading's time. A line of input is the number of steps; at the end of input the process ends.

    A reading runs from the start of its first step to where the next step would begin, logging included.
    """

    def __init__(self, out: TextIO, clock: str, device: str) -> None:
        self.out, self.device = out, device
        self.clock = time.process_time if clock == "cpu" else time.perf_counter
        self.left = 0
        self.begun: float | None = None
        self.about: Callable[[], dict[str, Any]] | None = None

    def introduce(self, about: Callable[[], dict[str, Any]]) -> None:
        """What the first line will hold, asked for when the first step is about to begin."""
        self.about = about

    def step_begins(self) -> None:
        """Call before each optimizer step."""
        if self.left:
            self.left -= 1
            return
        if self.begun is not None:
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds = self.clock() - self.begun
            print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(self.device)}), file=self.out)
        elif self.about is not None:
            print(json.dumps(self.about()), file=self.out)
        line = sys.stdin.readline()
        if not line.strip():
            raise SystemExit(0)
        self.left = int(line) - 1
        self.begun = self.clock()


def peak_bytes(device: str) -> int:
    """The most memory this process has had: of the card on CUDA, resident elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor() -> str:
    """The CPU by the name it gives itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def commit() -> str:
    """The short name of the commit that is checked out."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
