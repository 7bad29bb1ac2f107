"""Verbs for other people's tools: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import JsonFile, check_json_target, say, write_json


def add_to(app: typer.Typer) -> None:
    leaving = typer.Typer(help="Write a model for other tools.", no_args_is_help=True, rich_markup_mode=None)
    leaving.command("hf", no_args_is_help=True)(export_hf)
    app.add_typer(leaving, name="export")
    coming = typer.Typer(help="Take in a model of other tools.", no_args_is_help=True, rich_markup_mode=None)
    coming.command("hf", no_args_is_help=True)(import_hf)
    app.add_typer(coming, name="import")


def export_hf(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    json_file: JsonFile = None,
) -> None:
    """Write a Hugging Face folder that transformers loads with no code of ours."""
    from ..export.huggingface import export_run

    check_json_target(json_file)
    report = export_run(run, out)
    typer.echo(f"wrote {out}")
    write_json(json_file, report)


def import_hf(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, usable like a run.")],
    dtype: Annotated[
        str | None, typer.Option(help="Write the weights anew as float32, bfloat16 or float16; else as they are.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Check a Hugging Face folder and take it in."""
    from ..export.take_in import import_folder

    check_json_target(json_file)
    report = import_folder(folder, out, dtype=dtype, say=say)
    typer.echo(f"{report['architecture']}, {report['parameters']:,} parameters, {', '.join(report['dtype'])}")
    ready = f"talk to it: sprout chat {out}" if report["tokenizer"] else f"start from it: init_from: {out}"
    typer.echo(f"wrote {out}; {ready}")
    write_json(json_file, report)
