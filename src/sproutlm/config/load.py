"""From a YAML file and ``key=value`` arguments to a checked recipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .check import check
from .clean import CleanRecipe
from .dialled import notes as depth_notes
from .document import Document, Key, Problem, dotted, parse, to_yaml
from .fill import escape_variables, expand_short_forms, fill_variables, resolve_paths
from .names import nearest_name
from .overrides import override
from .schema import Pipeline, Recipe


@dataclass(frozen=True)
class Loaded:
    """A checked recipe and where it came from. ``notes`` are sentences that a person should see."""

    recipe: Recipe | Pipeline | CleanRecipe
    path: Path
    source_lines: dict[str, int]  # dotted key -> line in the file; 0 for what the command line gave
    overrides: tuple[str, ...]
    notes: tuple[str, ...]
    cwd: Path

    @property
    def run_dir(self) -> Path:
        return run_dir(self.recipe, self.cwd)


def run_dir(recipe: Recipe | Pipeline | CleanRecipe, cwd: str | Path | None = None) -> Path:
    """The run folder: what the recipe says, or ``runs/NAME`` below the current folder."""
    if isinstance(recipe, CleanRecipe):
        return Path(recipe.clean.out)
    return Path(recipe.run) if recipe.run is not None else Path(cwd or Path.cwd()).absolute() / "runs" / recipe.name


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    cwd: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Load the recipe (a pipeline, if it has ``stages``; one of cleaning, if it has ``clean``) at ``path``; ``overrides`` are ``key=value`` texts.

    Paths in the file are relative to its folder, those of ``overrides`` to ``cwd``. ``environ`` fills ``${VARIABLES}``
    (default: the process's environment). Raises ``RecipeError`` with every problem at once.
    """
    cwd = Path(cwd or Path.cwd()).absolute()
    file, notes = find_recipe(path, cwd)
    label = str(path) if not notes else str(file)
    return load_text(_read(file, label), label, file, overrides, cwd, environ, notes)


def load_text(
    text: str,
    label: str,
    file: Path,
    overrides: Sequence[str] = (),
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Loaded:
    """Load a recipe from its text, as if it stood in ``file``; messages call it ``label``."""
    cwd = cwd or Path.cwd()
    document = parse(text, label, file.parent)
    if not isinstance(document.data, dict):
        what = "empty" if document.data is None else "not a list of 'key: value' lines"
        raise RecipeError([f"{label}: {what}; a recipe has at least name, data, model and train"])
    problems: list[Problem] = []
    expand_short_forms(document)
    for text in overrides:
        problems += override(document, text, cwd)
    expand_short_forms(document)
    broken = fill_variables(document, os.environ if environ is None else environ)
    broken |= resolve_paths(document, broken)
    recipe, found = _check(document, broken)
    problems += [*broken.values(), *found]
    if problems or recipe is None:
        # In the order of the file; what the command line gave comes last.
        problems.sort(key=lambda problem: (problem.where.line == 0, problem.where.line))
        raise RecipeError(list(dict.fromkeys(str(problem) for problem in problems)))
    lines = {dotted(key): where.line for key, where in document.places.items() if key}
    notes = (*notes, *depth_notes(document.data))
    return Loaded(recipe, file, lines, tuple(overrides), notes, cwd)


def _check(
    document: Document, broken: Mapping[Key, Problem]
) -> tuple[Recipe | Pipeline | CleanRecipe | None, list[Problem]]:
    if "clean" in document.data:
        return check(CleanRecipe, document, broken=broken)
    if "stages" not in document.data:
        return check(Recipe, document, broken=broken)
    stages = document.data["stages"]
    problems: list[Problem] = []
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        recipe = stage.get("recipe") if isinstance(stage, dict) and stage.get("do") == "train" else None
        if isinstance(recipe, dict):
            problems += _check_stage(document, number, stage, recipe, broken)
    pipeline, found = check(Pipeline, document, broken=broken)
    return (None if problems else pipeline), problems + found


def _check_stage(
    document: Document, number: int, stage: dict[str, Any], recipe: dict[str, Any], broken: Mapping[Key, Problem]
) -> list[Problem]:
    """A training stage holds a recipe's fields: it is named after the stage and runs in the stage's folder."""
    key: Key = ("stages", number, "recipe")
    if isinstance(stage.get("name"), str):
        recipe.setdefault("name", stage["name"])
    _, problems = check(Recipe, document, key, broken)
    if recipe.get("run") is not None:
        at = (*key, "run")
        problems.append(
            Problem(
                document.where(at), dotted(at), "a stage runs in its own folder below the pipeline's; remove this line"
            )
        )
    return problems


# --- files --------------------------------------------------------------------------------------------------------------


def shipped_recipes() -> Path:
    """The folder of the recipes that come with the package: inside a wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def find_recipe(path: str | Path, cwd: Path) -> tuple[Path, list[str]]:
    """The file meant by ``path``, and a note where it is a shipped one (``tiny``, ``tiny.yaml``, ``recipes/tiny.yaml``)."""
    given = Path(path).expanduser()
    file = Path(os.path.abspath(cwd / given))
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}; check the folder's owner and mode"]) from None
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise RecipeError([f"{path}: a folder; give the recipe's .yaml file"])
        return file, []
    name = given.name.removesuffix(".yaml")
    if given.parent in (Path("."), Path("recipes")) and not given.is_absolute():
        shipped = shipped_recipes() / f"{name}.yaml"
        if shipped.is_file():
            return shipped, [f"{path} is not a file here; taking the shipped recipe {shipped}"]
    known = sorted(recipe.stem for recipe in shipped_recipes().glob("*.yaml"))
    beside = [recipe.name for recipe in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
    near = nearest_name(given.name, choices=beside) or nearest_name(name, choices=known)
    cure = f"did you mean {near!r}?" if near else f"shipped recipes: {', '.join(known)}"
    raise RecipeError([f"{path}: no such file; {cure}"])


def _read(file: Path, label: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([f"{label}: not UTF-8 (byte {error.start}); save the file as UTF-8"]) from None
    except PermissionError:
        raise RecipeError([f"{label}: no permission to read it; change the file's owner or mode"]) from None
    except OSError as error:
        raise RecipeError([f"{label}: cannot be read: {error.strerror}"]) from None


def dump_recipe(recipe: Recipe | Pipeline | CleanRecipe) -> str:
    """The recipe as YAML with every field written out; loading it gives an equal object, from any folder."""
    return to_yaml(escape_variables(recipe.model_dump(mode="json")))
