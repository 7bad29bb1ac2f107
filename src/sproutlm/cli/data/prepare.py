"""Write the embedded world, prepare token shards, look at rows as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...errors import SproutError
from ..arguments import JsonFile, Overrides, RecipeFile, check_json_target, load, write_json


class RoleOrder(StrEnum):
    strict = "strict"
    any = "any"


class Size(StrEnum):
    tiny = "tiny"
    small = "small"


def add_to(group: typer.Typer) -> None:
    group.command(no_args_is_help=True)(synth)
    group.command(no_args_is_help=True)(prepare)
    group.command(no_args_is_help=True)(inspect)


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    size: Annotated[Size, typer.Option(help="How much of it.")] = Size.small,
    json_file: JsonFile = None,
) -> None:
    """Write the embedded world: texts, conversations, questions with checkable answers, in Chinese and English."""
    from ...data.synth import synthesize

    check_json_target(json_file)
    report = synthesize(out, seed, size.value)
    for name, value in report.items():
        typer.echo(f"{name}: {value}")
    write_json(json_file, report)


def prepare(recipe: RecipeFile, settings: Overrides = None, json_file: JsonFile = None) -> None:
    """Build what a recipe trains on: the embedded world, the tokenizer, the token shards."""
    from ...pipeline.prepare import prepare_data

    check_json_target(json_file)
    report = prepare_data(load(recipe, settings, "run"))
    write_json(json_file, report)


def inspect(
    what: Annotated[Path, typer.Argument(metavar="WHAT", help="A recipe (.yaml, or a shipped one's name), or a file.")],
    settings: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For a data file: count its tokens, too.")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(min=2, help="For a data file: the length that counts as too long.")
    ] = None,
    format: Annotated[str, typer.Option(help="For a data file: its format's name.")] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="For a data file: where a field stands: text=body. Repeat for more."),
    ] = None,
    encoding: Annotated[str, typer.Option(help="For a data file: its encoding, such as gb18030.")] = "utf-8",
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help="For a data file: put TEXT where rows say {{NAME}}. Repeat for more."),
    ] = None,
    role_order: Annotated[
        RoleOrder, typer.Option(help="For a data file: whether user and assistant must take turns.")
    ] = RoleOrder.strict,
    json_file: JsonFile = None,
) -> None:
    """Show rows as the model will see them, trained tokens in colour, and the statistics."""
    from rich.console import Console

    from ...data.inspect import inspect_file, inspect_recipe, render

    check_json_target(json_file)
    if _is_recipe(what):
        if columns or fill or encoding != "utf-8" or role_order != RoleOrder.strict:
            raise SproutError(
                f"{what} is a recipe: its columns, fill, role_order and encoding stand in it, below data.train"
            )
        report = inspect_recipe(load(what, settings, "run"), rows)
    else:
        if settings:
            raise SproutError(f"{settings[0]}: key=value goes with a recipe; {what} is a data file")
        mapped = _pairs("--columns", columns or (), "FIELD=COLUMN", "text=body")
        texts = _pairs("--fill", fill or (), "NAME=TEXT", "name=Sprout")
        report = inspect_file(
            what, tokenizer, rows, seq_len, format, mapped, encoding, fill=texts, role_order=role_order.value
        )
    render(report, Console())
    write_json(json_file, report)


def _is_recipe(what: Path) -> bool:
    """A .yaml file, or the name of a shipped recipe where no file of that name stands."""
    from ...config.load import shipped_recipes

    if what.suffix.lower() in (".yaml", ".yml"):
        return True
    return what.name == str(what) and not what.exists() and (shipped_recipes() / f"{what}.yaml").is_file()


def _pairs(option: str, given: Sequence[str], shape: str, example: str) -> dict[str, str]:
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise SproutError(f"{option} {pair}: expected {shape}, such as {option} {example}")
        found[name.strip()] = value.strip()
    return found
