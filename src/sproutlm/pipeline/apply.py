"""``sprout plan --apply``: settings written into a recipe's file, its comments and its order kept."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..atomic import write_atomic
from ..config.document import to_yaml
from ..config.load import load_text
from ..config.schema import OptimizerConfig, Recipe
from ..errors import SproutError


def with_companions(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings``, and what has to go with them: AdamW's rate is not Muon's."""
    found = dict(settings)
    default = OptimizerConfig()
    if found.get("optimizer.name") == "muon" and recipe.optimizer.lr != default.lr:
        found["optimizer.lr"] = default.lr
    return found


def edited(text: str, settings: Mapping[str, Any], label: str, prefix: Sequence[str | int] = ()) -> str:
    """``text`` with the dotted keys of ``settings`` set, below ``prefix``. SproutError where a section is none."""
    for key, value in settings.items():
        text = _set(text, [*prefix, *key.split(".")], to_yaml(value).strip().removesuffix("\n...").strip(), label)
    return text


def _set(text: str, path: list[str | int], value: str, label: str) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, part in enumerate(path):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            continue
        if not isinstance(node, yaml.MappingNode):
            where = ".".join(map(str, path[:depth]))
            raise SproutError(
                f"{label}: {where} is no section with keys, so nothing can be written there; set it by hand"
            )
        child = next((v for k, v in node.value if k.value == part), None)
        if child is None:
            return _insert(text, node, path[depth:], value)
        node = child
    assert node is not None
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]


def _insert(text: str, node: yaml.MappingNode, rest: list[str | int], value: str) -> str:
    """A key that is not there yet, as the first one of its section; a new section at the end of the file."""
    if node.flow_style:
        nested = "".join(f"{part}: {{" for part in rest[:-1]) + f"{rest[-1]}: {value}" + "}" * (len(rest) - 1)
        at = node.start_mark.index + 1
        return f"{text[:at]}{nested}{', ' if node.value else ''}{text[at:]}"
    indent = node.start_mark.column
    lines = [f"{' ' * (indent + 2 * depth)}{part}:" for depth, part in enumerate(rest)]
    block = "\n".join([*lines[:-1], f"{lines[-1]} {value}"]) + "\n"
    if indent == 0:
        return text + ("" if text.endswith("\n") else "\n") + block
    at = text.rfind("\n", 0, node.start_mark.index) + 1
    if text[at : node.start_mark.index].strip():  # `- name: x`: the first key shares its line with the dash
        return text[: node.start_mark.index] + block.lstrip() + " " * indent + text[node.start_mark.index :]
    return text[:at] + block + text[at:]


def difference(before: str, after: str, label: str) -> str:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), label, f"{label} (new)", n=1)
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def apply_to_file(file: Path, changes: Mapping[tuple[str | int, ...], Mapping[str, Any]]) -> str:
    """Write ``changes`` (by the place of the recipe in the file) and return the difference; "" where nothing changes.

    The new text is loaded before it is written: what it says must be a recipe. The file is replaced in one step.
    """
    try:
        before = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SproutError(f"{file}: cannot be read ({error}); --apply needs a recipe file") from error
    after = before
    for prefix, settings in changes.items():
        after = edited(after, settings, str(file), prefix)
    if after == before:
        return ""
    load_text(after, str(file), file)  # raises with its own sentence
    try:
        write_atomic(file, after)
    except OSError as error:
        raise SproutError(f"{file}: cannot be written ({error.strerror}); nothing was changed") from error
    return difference(before, after, str(file))
