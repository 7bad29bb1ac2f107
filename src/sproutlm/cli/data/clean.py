"""Filter, deduplicate and decontaminate text at scale."""

from __future__ import annotations

from typing import Annotated

import typer

from ..arguments import JsonFile, Overrides, RecipeFile, check_json_target, load, say, write_json


def add_to(group: typer.Typer) -> None:
    group.command(no_args_is_help=True)(clean)


def clean(
    recipe: RecipeFile,
    settings: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show inputs, stages and jobs; write nothing.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Clean text as a recipe says: language, quality, PII, evaluation sets, duplicates; here, on Slurm or on Ray."""
    from ...config.clean import CleanRecipe
    from ...data.clean.run import clean as run, render

    check_json_target(json_file)
    loaded = load(recipe, settings, "clean")
    assert isinstance(loaded.recipe, CleanRecipe)
    report = run(loaded.recipe, dry_run=dry_run, say=say)
    render(report)
    if not dry_run and "funnel" in report:
        typer.echo(
            f"{report['kept']:,} documents in {loaded.recipe.clean.out}/clean; report.md and funnel.png beside it"
        )
    write_json(json_file, report)
