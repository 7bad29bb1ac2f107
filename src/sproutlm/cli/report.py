"""The verb that shows runs: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SproutError
from .arguments import say


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; several are drawn together.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write [RUN/report.html; several: ./report.html]."),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", metavar="en|zh", help="Language of the page.")] = "en",
    doctor: Annotated[bool, typer.Option(help="Also examine each run, as `sprout doctor` does.")] = True,
) -> None:
    """Write one HTML file with curves, samples, settings and findings; it opens without a network."""
    if lang not in ("en", "zh"):
        raise SproutError(f"--lang {lang}: give en or zh")
    from ..pipeline.html_report import write_report

    write_report(runs, out, lang, doctor, say)
