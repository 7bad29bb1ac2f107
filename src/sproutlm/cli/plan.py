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
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME|SIZE", help="Plan for one: cpu, 8GB, 3060, 4060, 4090, a100, h100, ..."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", metavar="X", min=0, help="What an hour of --device costs (of a card).")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the settings that make it fit --device into the recipe's file.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Make one real longest step here, and show its memory and time.")
    ] = False,
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, help="Estimate a step on N machines of --gpus cards.")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Cards in a machine.")] = 8,
    link: Annotated[
        float, typer.Option("--link", metavar="GB/S", min=0.1, help="Between machines, a card, one direction.")
    ] = 50.0,
    depth: Annotated[
        str | None,
        typer.Option("--depth", metavar="N[,N...]", help="All that follows from one number; several as a table."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the presets and end.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Parameters, FLOPs per token, memory by part, and the cards that a model fits on."""
    check_json_target(json_file)
    from ..config.presets import PRESETS, find

    if depth is not None:
        plan_depth(
            depth, name, settings or [], context, device, price, bool(apply or probe or nodes or batch), json_file
        )
        return
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
    if nodes is not None:
        from ..pipeline.plan_nodes import plan_nodes, print_nodes

        report = plan_nodes(loaded, context, batch, device or "h100", nodes, gpus, link * 1e9, price)
        print_nodes(report)
        write_json(json_file, report)
        return
    if price is not None and device is None:
        raise SproutError("--price is of an hour of one device: give --device too, such as --device h100")
    if apply:
        check_can_apply(name, preset, device, settings, context or batch)
    report = plan_all(loaded, context, batch, preset, device, price)
    if probe:
        from ..pipeline.plan import probe_all

        report["probes"] = probe_all(loaded, context, batch)
    print_plans(report)
    if apply:
        from ..pipeline.plan import apply_all

        report["applied"] = apply_all(loaded, report)
    write_json(json_file, report)


def plan_depth(
    depth: str,
    name: str | None,
    settings: list[str],
    context: int | None,
    device: str | None,
    price: float | None,
    more: bool,
    json_file: Path | None,
) -> None:
    """``--depth`` is a plan of its own: no preset and no recipe stands beside it."""
    if name is not None and "=" not in name:
        raise SproutError(
            f"--depth is a plan of its own: leave out {name}, or write model.depth={depth} behind a recipe"
        )
    if more:
        raise SproutError("--depth goes with key=value settings, --context, --device, --price and --json alone")
    if price is not None and device is None:
        raise SproutError("--price is of an hour of one device: give --device too, such as --device h100")
    from ..pipeline.plan_depth import depths_of, plan_depths, print_depths

    report = plan_depths(depths_of(depth), [*([name] if name else []), *settings], context, device, price)
    print_depths(report)
    write_json(json_file, report)


def check_can_apply(
    name: str, preset: str | None, device: str | None, settings: list[str] | None, changed: int | None
) -> None:
    """Refuse what cannot be written, before anything is reckoned."""
    if device is None:
        raise SproutError("--apply writes what makes a recipe fit a device: give --device too, such as --device 8GB")
    if preset is not None or not Path(name).is_file():
        raise SproutError(f"--apply: {name} is no file of yours; copy it to one first, and plan that")
    if settings or changed:
        raise SproutError("--apply writes what the file needs as it stands: put the settings into the file first")


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
