"""Verbs on tokenizers: train one, prove one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckFailed
from .arguments import JsonFile, check_json_target, say, write_json


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Train and test tokenizers.", no_args_is_help=True, rich_markup_mode=None)
    group.command(no_args_is_help=True)(train)
    group.command(no_args_is_help=True)(test)
    app.add_typer(group, name="tokenizer")


def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Text in any format that data takes.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids, special tokens included.")] = 6400,
    format: Annotated[str, typer.Option(help="The files' format.")] = "auto",
) -> None:
    """Train a byte-level BPE tokenizer on files."""
    from ..tokenizer.train import train_from_files

    tokenizer = train_from_files(files, out, vocab_size, format=format, say=say)
    typer.echo(f"{out}: {tokenizer.vocab_size:,} ids")


def test(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A tokenizer's folder, a run or a Hugging Face folder.")
    ],
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Report its compression, too. May be repeated.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Prove that every text comes back byte for byte, and report compression per language."""
    from ..tokenizer.check import check_tokenizer, print_report

    check_json_target(json_file)
    report = check_tokenizer(folder, text or [])
    print_report(report)
    write_json(json_file, report)
    failed = [check["name"] for check in report["checks"] if check["ok"] is False]
    if failed:
        raise CheckFailed(f"{folder}: failed: {', '.join(failed)}; the cures stand above")
