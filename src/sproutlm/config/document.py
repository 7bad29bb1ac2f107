"""A YAML text as plain values, with the place that each of them was written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError

Key = tuple[str | int, ...]
MAX_NODES = 100_000  # aliases of aliases grow without bound; no recipe comes near


@dataclass(frozen=True)
class Where:
    """A place: ``label`` is ``file:line`` or ``command line: key=value``; relative paths there begin at ``base``."""

    label: str
    line: int  # 0 on the command line
    base: Path


@dataclass(frozen=True)
class Problem:
    where: Where
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where.label, self.key, self.message) if part)


@dataclass
class Document:
    """``data`` as parsed; ``places`` says where each key and list item stands, the root included."""

    data: Any
    places: dict[Key, Where] = field(default_factory=dict)

    def where(self, key: Key) -> Where:
        """The place of ``key``, or of the nearest section around it."""
        while key not in self.places and key:
            key = key[:-1]
        return self.places[key]

    def get(self, key: Key) -> Any:
        value = self.data
        for part in key:
            value = value[part]
        return value

    def put(self, key: Key, value: Any, places: dict[Key, Where]) -> None:
        """Set ``key``, whose section exists, and forget the places of what it held; ``places`` are relative to it."""
        self.get(key[:-1])[key[-1]] = value
        self.places = {old: where for old, where in self.places.items() if old[: len(key)] != key}
        self.places |= {key + part: where for part, where in places.items()}


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: ``1e-3`` is a number, and a date stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` would read as a number."""


_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


# YAML takes these for line ends and folds them away, unless they are written as escapes.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if _LINE_ENDS.search(value) else None)


_Dumper.add_representer(str, _text)


def to_yaml(value: Any) -> str:
    """Plain values as YAML that ``parse`` reads back to equal ones."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, label: str, base: Path, *, command_line: bool = False) -> Document:
    """Parse ``text``; bad YAML, a duplicate key or a value that contains itself is a ``RecipeError``."""

    def place(node: yaml.Node) -> Where:
        line = node.start_mark.line + 1
        return Where(label, 0, base) if command_line else Where(f"{label}:{line}", line, base)

    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, {(): Where(label, 0 if command_line else 1, base)})
        document = Document(None, {(): place(root)})
        document.data = _build(root, (), loader, document.places, problems, place)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = label if command_line or mark is None else f"{label}:{mark.line + 1}"
        reason = " ".join(part for part in (error.context, error.problem) if part)
        cure = "check the indentation, and put text with : or # in quotes"
        raise RecipeError([f"{at}: not YAML: {reason}; {cure}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError([f"{label}: not YAML: {reason}; correct it, or put the text in quotes"]) from None
    if problems:
        raise RecipeError([str(problem) for problem in problems])
    return document


def _build(node: Any, key: Key, loader: _Loader, places: dict[Key, Where], problems: list[Problem], place: Any) -> Any:
    """``node`` as dicts, lists and scalars, each a fresh object even where YAML repeats one by an alias."""
    if len(places) > MAX_NODES or len(key) > 50:
        problems.append(Problem(place(node), dotted(key[:3]), "nested or repeated without end; write the values out"))
        return None
    if isinstance(node, yaml.SequenceNode):
        items = []
        for number, child in enumerate(node.value):
            places[(*key, number)] = place(child)
            items.append(_build(child, (*key, number), loader, places, problems, place) if not problems else None)
        return items
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    first_lines: dict[str, int] = {}
    for name, _ in node.value:
        text = str(name.value)
        if name.tag == "tag:yaml.org,2002:merge":
            continue
        if text in first_lines:
            problems.append(
                Problem(place(name), dotted((*key, text)), f"given twice (first in line {first_lines[text]}); keep one")
            )
        first_lines.setdefault(text, name.start_mark.line + 1)
    loader.flatten_mapping(node)
    section: dict[str, Any] = {}
    for name, child in node.value:
        # Keys are text, whatever YAML would make of them: `on` and `1` are names of columns like any other.
        text = str(name.value)
        places[(*key, text)] = place(name)
        section[text] = _build(child, (*key, text), loader, places, problems, place) if not problems else None
    return section
