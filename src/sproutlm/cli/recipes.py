"""Verbs that take a recipe: train, run, quickstart, schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SproutError
from .arguments import DryRun, JsonFile, Overrides, RecipeFile, check_json_target, load, write_json
from .unread import goes_on_unread


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(train)
    app.command(no_args_is_help=True)(run)
    app.command()(quickstart)
    app.command()(schema)


def train(
    recipe: RecipeFile,
    settings: Overrides = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--change", metavar="KEY=VALUE", help="Change this when a run continues; recorded. May be repeated."
        ),
    ] = None,
    dry_run: DryRun = False,
    json_file: JsonFile = None,
) -> None:
    """Train one model as a recipe says; the same command continues an interrupted run."""
    check_json_target(json_file)
    changes = change or []
    with goes_on_unread():
        loaded = load(recipe, [*(settings or []), *changes], "run")
        if dry_run:
            from ..pipeline.dry_run import dry_run as plan, print_dry_run

            if int(os.environ.get("RANK", "0")):
                return  # the first of several processes prints it
            report = plan(loaded)
            print_dry_run(report)
            if not loaded.recipe.parallel.whole:  # type: ignore[union-attr]
                typer.echo(
                    "this is the plan of one process that holds the whole model: what parallel splits is not planned yet"
                )
        else:
            from ..pipeline.train import train as train_model

            report = train_model(loaded, changes)
        if "rank" not in report:  # the first of several processes writes
            write_json(json_file, report)


def run(recipe: RecipeFile, settings: Overrides = None, dry_run: DryRun = False, json_file: JsonFile = None) -> None:
    """Run the stages of a recipe in order, skipping those that are done and unchanged."""
    _run(recipe, settings or [], dry_run, json_file)


def _run(
    recipe: Path, settings: list[str], dry_run: bool, json_file: Path | None, environ: dict[str, str] | None = None
) -> None:
    check_json_target(json_file)
    with goes_on_unread():
        loaded = load(recipe, settings, "stages", environ)
        if dry_run:
            from ..pipeline.dry_run import dry_run as plan, print_dry_run

            report = plan(loaded)
            print_dry_run(report)
        else:
            from ..pipeline.run import run as run_stages

            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise SproutError(
                    f"{recipe}: several stages run in one process; start each training stage by itself (sprout launch RECIPE)"
                )

            report = run_stages(loaded)
        write_json(json_file, report)


def quickstart(
    settings: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder [default: runs/quickstart].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Your own text instead of the embedded world.")
    ] = None,
    dry_run: DryRun = False,
    json_file: JsonFile = None,
) -> None:
    """Raw text to a chat model in minutes: world, tokenizer, pretraining, fine-tuning, evaluation, export, a talk."""
    from ..config.load import shipped_recipes

    if data is not None and not data.is_file():
        raise SproutError(
            f"--data {data}: {'is a folder' if data.is_dir() else 'no such file'}; give a text or jsonl file"
        )
    name = "quickstart" if data is None else "quickstart-own-text"
    # Quoted, so that YAML takes any folder's name as text; first, so that a run=DIR of the person's own wins.
    folder = json.dumps(str(out or Path("runs") / name), ensure_ascii=False)
    environ = None if data is None else {"SPROUT_TEXT": str(data.absolute())}
    _run(shipped_recipes() / f"{name}.yaml", [f"run={folder}", *(settings or [])], dry_run, json_file, environ)


def schema(
    json_file: Annotated[Path | None, typer.Option("--json", "--out", metavar="FILE", help="Write to FILE.")] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ..config.json_schema import json_schema

    check_json_target(json_file)
    if json_file is None:
        typer.echo(json.dumps(json_schema(), ensure_ascii=False, indent=2))
    else:
        write_json(json_file, json_schema())
