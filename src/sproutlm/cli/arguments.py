"""What several verbs take: ``key=value`` arguments, ``--json FILE``, a recipe of the right kind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic import write_atomic
from ..errors import SproutError

if TYPE_CHECKING:
    from ..config.load import Loaded

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A .yaml file, or the name of a shipped recipe (tiny).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings in place of the recipe's: train.steps=500"),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to FILE as JSON.")]
_KINDS = {
    "run": ("train", "one training run"),
    "stages": ("run", "several stages"),
    "clean": ("data clean", "the cleaning of data"),
}
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show parameters, steps, memory and time; train nothing, write nothing.")
]


def load(path: Path, overrides: list[str] | None, kind: str, environ: dict[str, str] | None = None) -> Loaded:
    """Load a recipe of ``kind`` ('run', 'stages' or 'clean'; 'any' takes all), saying what a person should know of it."""
    from ..config.clean import CleanRecipe
    from ..config.load import load_recipe
    from ..config.schema import Pipeline

    loaded = load_recipe(path, overrides or (), environ=None if environ is None else {**os.environ, **environ})
    recipe = loaded.recipe
    given = "clean" if isinstance(recipe, CleanRecipe) else "stages" if isinstance(recipe, Pipeline) else "run"
    if kind not in ("any", given):
        verb, what = _KINDS[given]
        raise SproutError(f"{path}: describes {what}; use: sprout {verb} {path}")
    for note in loaded.notes:
        say(note)
    return loaded


def say(message: str) -> None:
    """Print a sentence beside the results: on stderr, so that a pipe gets the results alone."""
    print(message, file=sys.stderr, flush=True)


def check_json_target(path: Path | None) -> None:
    """Refuse a ``--json`` that cannot be written before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise SproutError(f"--json {path}: is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise SproutError(f"--json {path}: the folder {path.absolute().parent} does not exist; make it first")


def write_json(path: Path | None, report: Any) -> None:
    """Write ``report`` whole or not at all: a reader never meets half a file. None writes nothing."""
    if path is None:
        return
    text = json.dumps(_plain(report), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    try:
        write_atomic(path, text)
    except OSError as error:
        raise SproutError(f"--json {path}: cannot be written: {error.strerror}") from error


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types; a figure that is not finite becomes null, which every reader can parse."""
    if isinstance(value, dict):
        return {str(name): _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(child) for child in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, str | int) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    return str(value)
