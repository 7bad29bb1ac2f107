"""``metrics.jsonl``, ``loss.png`` and the console lines of a run."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


class MetricsLog:
    """One JSON object a line. Fields that depend on the machine, not on the run, are in ``CLOCK_FIELDS``."""

    CLOCK_FIELDS = ("tokens_per_second", "memory_mb", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Forget every line past ``step``, and a line cut off by a kill: a resumed run writes them again, the same."""
        if not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def write(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; an unfinished last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


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
        text = (
            f"step {row['step']}/{self.total}  loss {row['loss']:.4f}  lr x{row['lr_multiplier']:.3f}  "
            f"grad {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tok/s  "
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
    temporary = out.with_name(f".{out.name}.tmp")
    figure.savefig(temporary, format="png")
    plt.close(figure)
    os.replace(temporary, out)
