"""Fetch data sets from the hubs by name or address, and the catalogue of those that people use."""

from __future__ import annotations

from typing import Annotated

import typer

from ..arguments import JsonFile
from ..download import Check, DryRun, Exclude, From, HubCopy, Include, MaxFiles, Out, Sample, fetch


def add_to(group: typer.Typer) -> None:
    group.command(no_args_is_help=True)(download)
    group.command()(catalogue)


def download(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of the catalogue, hf://datasets/OWNER/NAME[@REVISION][/FILES], modelscope://…, or a folder.",
        ),
    ],
    out: Out = None,
    include: Include = None,
    exclude: Exclude = None,
    max_files: MaxFiles = None,
    sample: Sample = None,
    source: From = None,
    hub: HubCopy = None,
    dry_run: DryRun = False,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """Fetch a data set; the same command goes on where it stopped and checks what is there."""
    fetch("data", name, out, include, exclude, max_files, sample, source, hub, dry_run, check, json_file)


def catalogue(
    word: Annotated[
        str | None,
        typer.Argument(metavar="WORD", help="Only entries with this in their name, description, language or licence."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Only data for: pretrain, sft, preference, classification, eval.")
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="The models instead of the data sets.")] = False,
    json_file: JsonFile = None,
) -> None:
    """List the data sets (or models) that are known by name: size, licence, schema, and the line to type."""
    from ...hub.table import show
    from ..arguments import check_json_target, write_json

    check_json_target(json_file)
    write_json(json_file, show("model" if models else "data", word, stage))
