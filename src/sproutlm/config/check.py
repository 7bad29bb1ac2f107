"""Every fault of a recipe at once, each with its place, the nearest valid name and the cure.

Pydantic reports wrong fields together but looks at combinations only where every field is right. So a document is
checked in rounds: what a round found is reported and taken out (a misspelt key is renamed), until nothing is left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from .document import Document, Key, Problem, Where, dotted
from .names import nearest_name, sections_at
from .strict import Fault

MAX_ROUNDS = 12


def check(
    model: type[BaseModel], document: Document, prefix: Key = (), broken: Iterable[Key] = ()
) -> tuple[Any, list[Problem]]:
    """Validate ``document`` from ``prefix`` down as ``model``; ``broken`` keys were reported already.

    Returns the instance (None where there is any problem) and the problems, in no particular order.
    """
    broken = [key[len(prefix) :] for key in broken if key[: len(prefix)] == prefix and len(key) > len(prefix)]
    rounds = _Rounds(model, document, prefix, broken)
    for _ in range(MAX_ROUNDS):
        try:
            instance = model.model_validate(rounds.data)
        except ValidationError as error:
            # Misspelt keys first: the name that was meant is then not reported as missing.
            for fault in sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"):
                rounds.take(fault)
            continue
        return (None if rounds.problems or broken else instance), rounds.problems
    return None, rounds.problems


class _Rounds:
    def __init__(self, model: type[BaseModel], document: Document, prefix: Key, broken: Iterable[Key]) -> None:
        self.model, self.document, self.prefix = model, document, prefix
        self.data = copy.deepcopy(document.get(prefix))
        self.problems: list[Problem] = []
        self.removed: set[Key] = set()
        self.renamed: dict[Key, Key] = {}
        for key in broken:
            self.remove(key)

    def take(self, error: Any) -> None:
        """Report one of pydantic's errors and take its cause out of ``data``."""
        key = _plain(error["loc"])
        kind = error["type"]
        if kind == "combination":
            self.take_faults(key, error["ctx"]["faults"])
        elif kind == "extra_forbidden":
            self.take_unknown(key, error["input"])
        elif kind == "missing" or kind == "union_tag_not_found":
            if kind == "union_tag_not_found":
                key = (*key, "do")
            if key in self.renamed:
                return
            if not self.is_removed(key):
                self.report(key, "missing; it is required")
            self.removed.add(key)
            self.stand_in(key)
        else:
            # Short forms below a misspelt name were not expanded: they are no faults.
            short_form = self.original(key) != key and kind in ("list_type", "model_type", "model_attributes_type")
            if not self.is_removed(key) and not short_form:
                self.report(key, sentence(error))
            self.remove(key)

    def take_faults(self, section: Key, faults: list[Fault]) -> None:
        """Report combinations, but none that follows from something reported in an earlier round."""
        concerned: list[list[Key]] = []
        for fault in faults:
            keys: list[Key] = [section + tuple(_number(part) for part in key.split(".")) for key in fault.keys]
            concerned.append(keys)
            if not any(self.is_removed(key) for key in keys):
                # Marked where the person touched it last: on the command line, if one half stands there.
                places = [self.where(key) for key in keys]
                self.report(keys[0], fault.message, next((place for place in places if place.line == 0), places[0]))
        for key in [key for keys in concerned for key in keys]:
            self.remove(key)

    def take_unknown(self, key: Key, value: Any) -> None:
        sections = sections_at(self.model, key[:-1], self.data)
        name = str(key[-1])
        found = nearest_name(name, sections, self.model)
        valid = sorted({field for section in sections for field in section.model_fields})
        cure = f"did you mean {found!r}?" if found else f"known here: {', '.join(valid)}"
        self.report(key, f"unknown key (got {show(value)}); {cure}")
        section = _descend(self.data, key[:-1])
        section.pop(name)
        if found in valid and found not in section:
            section[found] = value
            self.renamed[(*key[:-1], found)] = key

    def report(self, key: Key, message: str, where: Where | None = None) -> None:
        key_text = dotted(self.prefix + self.original(key))
        self.problems.append(Problem(where or self.where(key), key_text, message))

    def original(self, key: Key) -> Key:
        for length in range(len(key), 0, -1):
            if key[:length] in self.renamed:
                return self.renamed[key[:length]] + key[length:]
        return key

    def where(self, key: Key) -> Where:
        return self.document.where(self.prefix + self.original(key))

    def is_removed(self, key: Key) -> bool:
        return any(key[: len(removed)] == removed for removed in self.removed)

    def remove(self, key: Key) -> None:
        """Take ``key`` out; a wrong item of a list takes the list with it, but for a stage, which others refer to."""
        self.removed.add(key)
        if len(key) == 2 and key[0] == "stages":
            old = self.data["stages"][key[1]]
            name = old.get("name") if isinstance(old, dict) else None
            self.data["stages"][key[1]] = {"do": "synth", "name": name if isinstance(name, str) else f"stage-{key[1]}"}
            return
        while key and isinstance(key[-1], int):
            key = key[:-1]
            self.removed.add(key)
        section = _descend(self.data, key[:-1]) if key else None
        if isinstance(section, dict):
            section.pop(str(key[-1]), None)
        elif not key:
            self.data = {}

    def stand_in(self, key: Key) -> None:
        """Put something valid in the place of a required key, so that the rest can be looked at."""
        section = _descend(self.data, key[:-1])
        if isinstance(section, dict):
            value = [{"path": "x"}] if key[-2:] == ("data", "train") else _STAND_INS.get(str(key[-1]), "x")
            section[str(key[-1])] = copy.deepcopy(value)


_STAND_INS: dict[str, Any] = {
    "data": {"train": [{"path": "x"}]},
    "clean": {"sources": [{"path": "x"}], "out": "x"},
    "sources": [{"path": "x"}],
    "against": [{"path": "x"}],
    "keep": ["x"],
    "train": {"steps": 1},
    "rows": 1,
    "says": ["x"],
    "tokenizer": {},
    "recipe": {},
    "do": "synth",
    "stages": [{"do": "synth", "name": "x"}],
}


def _descend(value: Any, key: Key) -> Any:
    for part in key:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _plain(loc: tuple[str | int, ...]) -> Key:
    """A location without the tags that pydantic puts in for the members of a union."""
    key = tuple(part for part in loc if part != "[key]")
    for union in (("stages", 0), ("data", "validation"), ("recipe", "data", "validation")):
        size = len(union)
        head = tuple(0 if isinstance(part, int) else part for part in key[:size])
        if head == union and len(key) > size and isinstance(key[size], str):
            key = key[:size] + key[size + 1 :]
    return key


def _number(part: str) -> str | int:
    return int(part) if part.isdecimal() else part


# --- sentences ----------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """``value`` as a person wrote it, cut to a readable length."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section with " + (", ".join(str(name) for name in list(value)[:3]) or "nothing in it")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def sentence(error: Any) -> str:
    """One of pydantic's field errors in plain words."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    got = f"(got {show(value)})"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected", context.get("expected_tags", "")).replace("'", "").replace(" or ", ", ")
        choices = expected.split(", ")
        given = context.get("tag", value)
        near = nearest_name(given, choices=choices) if isinstance(given, str) else None
        return f"must be one of {', '.join(choices)} (got {show(given)})" + (
            f"; did you mean {near!r}?" if near else ""
        )
    if kind in _COMPARISONS:
        name, words = _COMPARISONS[kind]
        return f"must be {words} {context[name]:g} {got}"
    if kind.startswith("int_"):
        return f"must be a whole number {got}"
    if kind.startswith(("float_", "finite_", "not_a_number")):
        return f"must be a number {got}"
    if kind.startswith("bool_"):
        return f"must be true or false {got}"
    if kind == "string_type":
        return f"must be text {got}; put it in quotes" if value is not None else f"must be text {got}"
    if kind == "string_pattern_mismatch":
        return f"must be letters, digits, '.', '_' or '-' only {got}"
    if kind in ("list_type", "tuple_type"):
        return f"must be a list {got}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must be a section of 'key: value' lines {got}" + ("; fill it, or remove it" if value is None else "")
    if kind == "too_short":
        return f"must have at least {context['min_length']} item(s) {got}"
    if kind == "missing":
        return "missing; it is required"
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{message} {got}"
