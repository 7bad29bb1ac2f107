"""The verb that looks for silent faults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckFailed
from .arguments import JsonFile, check_json_target, write_json


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Data, tokenizers, models, runs, recipes; none: the environment."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Name the silent faults of this environment, and of files given, with their cure."""
    from ..doctor import examine, print_report

    check_json_target(json_file)
    report = examine(paths or [])
    well = print_report(report)
    write_json(json_file, report)
    if not well:
        n = report["counts"]["fail"]
        raise CheckFailed(
            f"{n} check{'' if n == 1 else 's'} failed; {'its cure stands' if n == 1 else 'the cures stand'} above"
        )
