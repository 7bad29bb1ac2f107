"""Verbs on data, one file per kind of work."""

from __future__ import annotations

import typer

from . import clean, download, prepare, rows


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Bring, check, change and prepare data; look at it.", no_args_is_help=True, rich_markup_mode=None
    )
    for part in (prepare, rows, clean, download):
        part.add_to(group)
    app.add_typer(group, name="data")
