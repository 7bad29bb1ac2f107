"""The verb that says what a model costs: plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SproutError
from .arguments import JsonFile, Overrides, check_json_target, load, write_json


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(plan)


def plan(
    name: Annotated[
        str | None, typer.Argument(metavar="PRESET|RECIPE", help="A known shape (see --list), or a recipe.")
    ] = None,
    settings: Overrides = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=2, help="Tokens per row and per answer [the recipe's].")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Rows, and answers, at once [the recipe's; 1].")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the presets and end.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Parameters, FLOPs per token, memory by part, and the cards that a model fits on."""
    check_json_target(json_file)
    from ..config.presets import PRESETS, find

    if show_list or name is None:
        from ..pipeline.plan import listing
        from ..pipeline.plan_table import print_listing

        if not show_list:
            raise SproutError("give a preset or a recipe; see: sprout plan --list")
        rows = listing()
        print_listing(rows)
        write_json(json_file, {"presets": rows})
        return
    preset = None if Path(name).is_file() else find(name)
    if preset is None:
        check_is_recipe(name, list(PRESETS))

    from ..pipeline.plan import load_preset, plan_all
    from ..pipeline.plan_table import print_plans

    loaded = load_preset(preset, settings or [], context) if preset else load(Path(name), settings, "any")
    report = plan_all(loaded, context, batch, preset)
    print_plans(report)
    write_json(json_file, report)


def check_is_recipe(name: str, presets: list[str]) -> None:
    """Refuse a name that is neither a preset nor a recipe, with the nearest of both."""
    from ..config.load import shipped_recipes
    from ..config.names import nearest_name
    from ..config.presets import nearest

    recipes = [path.stem for path in shipped_recipes().glob("*.yaml")]
    if name.endswith((".yaml", ".yml")) or "/" in name or name in recipes or Path(name).exists():
        return  # a recipe, or a file whose own error says more
    near = nearest(name) or nearest_name(name, choices=[*recipes, *presets])
    hint = f"did you mean {near!r}?" if near else "see: sprout plan --list"
    raise SproutError(f"{name}: neither a preset nor a recipe; {hint}")
