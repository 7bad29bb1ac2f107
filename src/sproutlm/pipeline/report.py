"""The closing table of ``sprout run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config.schema import Pipeline, TrainStage


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def print_report(pipeline: Pipeline, folder: Path, report: dict[str, Any]) -> None:
    """Stage, time, loss, bits-per-byte, checked answers by kind, stop rate; then the line to type next."""
    console = Console(width=None)
    table = Table(title=pipeline.name)
    for name in ("stage", "time", "loss", "bits/byte", "checked answers", "stop rate"):
        table.add_column(name, justify="left" if name in ("stage", "checked answers") else "right")
    for stage in report["stages"]:
        figures = stage.get("figures") or {}
        checked = figures.get("checked") or {}
        kinds = checked.get("by_kind") or {}
        answers = (
            "  ".join([f"all {_share(checked['overall'])}", *(f"{k} {_share(v)}" for k, v in kinds.items())])
            if kinds
            else ""
        )
        table.add_row(
            stage["name"],
            f"{stage['seconds']:.0f} s",
            _number(figures.get("loss")),
            _number(figures.get("bits_per_byte")),
            answers,
            _share(figures.get("stop_rate")),
        )
    table.add_row("total", f"{report['seconds']:.0f} s", "", "", "", "")
    console.print(table)
    if report.get("compute"):
        console.print(f"compute type: {report['compute']}")
    if report.get("control"):
        console.print(
            f"control (the same fine-tuning without pretraining): facts {_share(report['control']['by_kind'].get('fact'))}"
        )
    console.print(f"report: {folder / 'report.json'}   curves: {folder / 'loss.png'}")
    if (folder / "model").is_dir():
        console.print(f"next:  sprout chat {folder}", soft_wrap=True)
    else:
        trained = [s.name for s in pipeline.stages if isinstance(s, TrainStage)]
        if trained:
            console.print(f"next:  sprout chat {folder / trained[-1]}", soft_wrap=True)
