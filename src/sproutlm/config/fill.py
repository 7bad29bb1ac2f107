"""What is filled in before a recipe is checked: short forms, ``${VARIABLES}``, and the folder of relative paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .document import Document, Key, Problem, dotted

SOURCE_LISTS: tuple[Key, ...] = (
    ("data", "train"),
    ("data", "validation"),
    ("tokenizer", "train_on"),
    ("clean", "sources"),
    ("clean", "decontaminate", "against"),
)
RECIPE_PATHS: tuple[Key, ...] = (
    ("run",),
    ("init_from",),
    ("data", "cache"),
    ("tokenizer", "path"),
    ("template", "use"),
    ("clean", "out"),
    ("clean", "tokenizer"),
    ("clean", "language", "model"),
    *((*sources, "*", "path") for sources in SOURCE_LISTS),
)
STAGE_PATHS: tuple[Key, ...] = (
    ("model",),
    ("questions",),
    ("text",),
    ("tokenizer", "path"),
    ("tokenizer", "train_on", "*", "path"),
    *(("recipe", *path) for path in RECIPE_PATHS),
)
PATHS: tuple[Key, ...] = (*RECIPE_PATHS, *(("stages", "*", *path) for path in STAGE_PATHS))
NOT_A_PATH = ("synth:", "stage:")

_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?$", re.DOTALL)


# --- short forms --------------------------------------------------------------------------------------------------------


def expand_short_forms(document: Document) -> None:
    """``train: file``, ``train: [file, file]`` and ``tokenizer: folder`` as the sections they stand for."""
    sections: list[Key] = [()]
    stages = document.data.get("stages")
    if isinstance(stages, list):
        sections += [("stages", number) for number in range(len(stages))]
        sections += [("stages", number, "recipe") for number in range(len(stages))]
    for section in sections:
        if isinstance(_at(document.data, (*section, "tokenizer")), str):
            _wrap(document, (*section, "tokenizer"), "path")
        for name in SOURCE_LISTS:
            _expand_sources(document, section + name)


def _expand_sources(document: Document, key: Key) -> None:
    value = _at(document.data, key)
    holdout = key[-1] == "validation" and isinstance(value, dict) and "path" not in value
    if isinstance(value, str) or (isinstance(value, dict) and not holdout):
        _wrap(document, key, 0)
        value = [value]
    for number, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, str):
            _wrap(document, (*key, number), "path")


def _wrap(document: Document, key: Key, name: str | int) -> None:
    """Put the value of ``key`` one level deeper, with the places of all that it holds."""
    where = document.where(key)
    inner = {old[len(key) :]: place for old, place in document.places.items() if old[: len(key)] == key}
    value = document.get(key)
    places = {(): where} | {(name, *part): place for part, place in inner.items()}
    document.put(key, [value] if name == 0 else {name: value}, places)


# --- variables ----------------------------------------------------------------------------------------------------------


def fill_variables(document: Document, environ: Mapping[str, str]) -> dict[Key, Problem]:
    """Fill ``${NAME}`` and ``${NAME:-default}`` in every string; ``$${`` stands for ``${``. Returns what is missing."""
    problems: dict[Key, Problem] = {}
    for key, text in list(_strings(document.data)):
        missing: list[str] = []

        def fill(match: re.Match[str], missing: list[str] = missing) -> str:
            if match[1] is None:
                return "${"
            name = _NAME.match(match[1])
            if not match[2] or name is None:
                missing.append(
                    f"{match[0]!r} is no variable; write ${{NAME}} or ${{NAME:-default}}, and $${{ for a plain ${{"
                )
            elif name[2] is not None:
                return environ.get(name[1]) or name[2]
            elif name[1] not in environ:
                missing.append(
                    f"the variable {name[1]} is not set; set it ({name[1]}=... before the command), "
                    f"or write ${{{name[1]}:-default}}"
                )
            else:
                return environ[name[1]]
            return match[0]

        filled = _VARIABLE.sub(fill, text)
        if missing:
            problems[key] = Problem(document.where(key), dotted(key), "; ".join(missing))
        elif filled != text:
            document.get(key[:-1])[key[-1]] = filled
    return problems


def escape_variables(value: Any) -> Any:
    """``value`` such that ``fill_variables`` gives it back unchanged."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {name: escape_variables(child) for name, child in value.items()}
    return [escape_variables(child) for child in value] if isinstance(value, list) else value


# --- paths --------------------------------------------------------------------------------------------------------------


def resolve_paths(document: Document, skip: Mapping[Key, Problem]) -> dict[Key, Problem]:
    """Make the fields of ``PATHS`` absolute, from the folder of the recipe or, for ``key=value``, the current one."""
    problems: dict[Key, Problem] = {}
    in_pipeline = isinstance(document.data.get("stages"), list)
    for key in [key for pattern in PATHS for key in _matches(document.data, pattern)]:
        value = document.get(key)
        if key in skip or not isinstance(value, str) or (key[-1] == "init_from" and value == "random"):
            continue
        if key[-1] == "use" and value.strip() and not ("/" in value or os.path.splitext(value)[1]):
            continue  # a template's name
        where = document.where(key)
        if not value.strip():
            problems[key] = Problem(where, dotted(key), "empty; give a path, or leave the line out")
        elif value.startswith("stage:") and not in_pipeline:
            problems[key] = Problem(
                where, dotted(key), f"{value!r} names a stage, and only a recipe with stages has those; give a path"
            )
        elif not value.startswith(NOT_A_PATH):
            document.get(key[:-1])[key[-1]] = absolute(value, where.base)
    return problems


def absolute(path: str, base: Path) -> str:
    """``path`` from ``base``, normalised, symbolic links left as they are."""
    return os.path.abspath(os.path.join(base, os.path.expanduser(path)))


# --- walking ------------------------------------------------------------------------------------------------------------


def _at(value: Any, key: Key) -> Any:
    """The value at ``key``, or None where there is no such place."""
    for part in key:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _matches(value: Any, pattern: Key, key: Key = ()) -> Iterator[Key]:
    if not pattern:
        yield key
    elif pattern[0] == "*":
        for number, item in enumerate(value if isinstance(value, list) else []):
            yield from _matches(item, pattern[1:], (*key, number))
    elif isinstance(value, dict) and pattern[0] in value:
        yield from _matches(value[pattern[0]], pattern[1:], (*key, pattern[0]))


def _strings(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(child, (*key, name))
