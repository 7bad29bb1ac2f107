"""``metrics.jsonl``, ``loss.png`` and the console lines of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


class MetricsLog:
    """One JSON object a line. Fields that depend on the machine, not on the run, are in ``CLOCK_FIELDS``.

    A disk that takes no more never ends a run: it is said once, and the rows wait in memory until there is room again.
    """

    CLOCK_FIELDS = (
        "tokens_per_second", "memory_mb", "seconds", "step_ms", "data_wait", "mfu", "cuda_memory_mb", "gpu_use",
    )  # fmt: skip
    MOST_WAITING = 10_000  # rows kept in memory while the disk takes none

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path, self.say = path, say
        self.lost = 0  # rows that no room was found for, not even later
        self._waiting: list[bytes] = []
        self._failed = False

    def rewind(self, step: int) -> None:
        """Forget every line past ``step``, and a line cut off by a kill: a resumed run writes them again, the same."""
        self._waiting = []
        try:
            with open(self.path, "rb+") as f:  # rows come in the order of their steps: what goes is the file's end
                kept = 0
                for line in f:
                    row = parse_row(line)
                    if row is not None and row["step"] > step:
                        break
                    if line.endswith(b"\n"):
                        kept += len(line)
                f.truncate(kept)
        except FileNotFoundError:
            return
        except OSError as error:
            self._say_once(error)

    def write(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(row).encode() + b"\n")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as f:
                whole = os.fstat(f.fileno()).st_size
                try:
                    data = b"".join(self._waiting)
                    if f.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with suppress(OSError):
                        f.truncate(whole)  # no half of a line stays behind
                    raise
            self._waiting = []
        except OSError as error:
            self._say_once(error)
            if len(self._waiting) > self.MOST_WAITING:
                self._waiting.pop(0)
                self.lost += 1

    def close(self) -> None:
        """Count what could not be written to the end."""
        lost = self.lost + len(self._waiting)
        if lost:
            self.say(f"{self.path}: {lost:,} rows of metrics could not be written and are lost")
        self._waiting, self.lost = [], 0

    def _say_once(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            self.say(
                f"warning: {self.path} cannot be written ({error.strerror}); training goes on, and the rows are kept in "
                "memory until it can. Make room on this disk: checkpoints need it, too"
            )


def parse_row(line: bytes | str) -> dict[str, Any] | None:
    """One line of a metrics file; None for a line that was cut off or damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; an unfinished last line is left out."""
    # Split at line feeds alone: a sample may hold other characters that end a line.
    rows = (parse_row(line) for line in path.read_bytes().split(b"\n"))
    return [row for row in rows if row is not None]


def memory_mb() -> float:
    """Resident memory of this process, MB."""
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def format_seconds(seconds: float) -> str:
    seconds = max(0, int(round(seconds)))
    hours, rest = divmod(seconds, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{secs:02d}s"


class Console:
    """Progress lines: on a terminal one line that renews itself; elsewhere a line every few seconds."""

    def __init__(self, total_steps: int, say: Callable[[str], None] = print, every_seconds: float = 5.0) -> None:
        self.total = total_steps
        self.say = say
        self.live = sys.stdout.isatty()
        self.every = every_seconds
        self._last = 0.0

    def step(self, row: dict[str, Any], eta: float, final: bool = False) -> None:
        used = f"MFU {row['mfu']:.0%}  " if row.get("mfu") is not None else ""
        norm = f"{row['grad_norm']:.2f}" if "grad_norm" in row else "n/a"  # fp16 overflowed
        text = (
            f"step {row['step']}/{self.total}  loss {row['loss']:.4f}  lr x{row['lr_multiplier']:.3f}  "
            f"grad {norm}  {row['tokens_per_second']:,.0f} tok/s  {used}"
            f"{row['memory_mb']:,.0f} MB  ETA {format_seconds(eta)}"
        )
        now = time.perf_counter()
        if self.live and not final:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif final or now - self._last >= self.every:
            self._last = now
            self.line(text)

    def line(self, text: str) -> None:
        if self.live:
            print("\r\x1b[2K", end="")
        self.say(text)


def plot_or_say(curves: dict[str, Path], out: Path, say: Callable[[str], None] = print) -> None:
    """``plot_losses``; where the disk gives or takes nothing, a sentence in its place: a plot never ends a run."""
    try:
        plot_losses(curves, out)
    except OSError as error:
        with suppress(OSError):
            hidden(out).unlink(missing_ok=True)
        say(f"warning: {out} cannot be drawn ({error.strerror or error}); everything else of the run is there")


def hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.tmp")


def plot_losses(curves: dict[str, Path], out: Path) -> None:
    """Draw training and validation loss against tokens into ``out`` (PNG), one panel for each named metrics file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(7 * len(curves), 4.5), dpi=110, squeeze=False)
    for axes, (name, metrics) in zip(panels[0], curves.items(), strict=True):
        rows = read_metrics(metrics)
        for key, label in (("loss", "training loss"), ("val_loss", "validation loss")):
            points = [(r["tokens"], r[key]) for r in rows if key in r and math.isfinite(r[key])]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o" if key == "val_loss" else None, label=label)
        axes.set_xlabel("tokens")
        axes.set_ylabel("nats per token")
        axes.set_title(name.encode("ascii", "replace").decode())  # matplotlib's own font has no CJK glyphs
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.tight_layout()
    try:
        figure.savefig(hidden(out), format="png")
    finally:
        plt.close(figure)
    os.replace(hidden(out), out)
