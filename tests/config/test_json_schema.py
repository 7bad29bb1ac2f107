"""The JSON Schema that editors use agrees with what the loader accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sproutlm.config.json_schema import DIALECT, json_schema
from sproutlm.config.load import shipped_recipes

SCHEMA = json_schema()
GOOD = yaml.safe_load("""
name: one
data: {train: rows.jsonl}
model: {dim: 64}
train: {steps: 3}
""")


def accepts(schema: Any, value: Any) -> bool:
    """The part of draft 2020-12 that our schema uses."""
    if "$ref" in schema:
        return accepts(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], value)
    if "if" in schema:
        branch = "then" if accepts(schema["if"], value) else "else"
        return accepts(schema[branch], value)
    choices = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    if choices and not any(accepts(choice, value) for choice in choices):
        return False
    if "const" in schema and value != schema["const"] or "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kind = schema.get("type")
    if kind == "null" and value is not None or kind in kinds and not isinstance(value, kinds[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", [])) <= set(value):
            return False
        for name, child in value.items():
            inner = properties.get(name, extra if extra is not True else {})
            if inner is False or not accepts(inner, child):
                return False
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        inner = [prefix[n] if n < len(prefix) else schema.get("items", {}) for n in range(len(value))]
        if len(value) < schema.get("minItems", 0) or not all(accepts(s, v) for s, v in zip(inner, value, strict=True)):
            return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    return "minimum" not in schema or value >= schema["minimum"]


def test_dialect_and_every_key_has_a_home() -> None:
    assert SCHEMA["$schema"] == DIALECT
    for name, section in SCHEMA["$defs"].items():
        assert section["additionalProperties"] is False, name


@pytest.mark.parametrize("path", sorted(shipped_recipes().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_in_an_editor(path: Path) -> None:
    assert accepts(SCHEMA, yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"train": ["a", {"path": "b"}], "validation": {"rows": 3}}},
        {"data": {"train": {"path": "a"}, "validation": "v.txt"}},
        {"tokenizer": "folder"},
        {"tokenizer": {"train_on": "a.txt"}},
    ],
)
def test_short_forms_are_valid(change: dict[str, Any]) -> None:
    assert accepts(SCHEMA, GOOD | change)


@pytest.mark.parametrize(
    "change",
    [
        {"sead": 1},
        {"train": {"steps": "many"}},
        {"data": {"train": {"pth": "a"}}},
        {"stage": "x"},
        {"data": {"train": []}},
    ],
)
def test_mistakes_are_underlined(change: dict[str, Any]) -> None:
    assert not accepts(SCHEMA, GOOD | change)


def test_a_stage_needs_no_name_in_its_recipe_but_no_unknown_key() -> None:
    inner = {name: value for name, value in GOOD.items() if name != "name"}
    stage = {"do": "train", "name": "first", "recipe": inner}
    assert accepts(SCHEMA, {"name": "all", "stages": [stage]})
    assert not accepts(SCHEMA, {"name": "all", "stages": [stage | {"recipe": inner | {"sead": 1}}]})
    assert not accepts(SCHEMA, {"name": "all", "stages": [stage | {"recipe": inner | {"run": "x"}}]})


def test_how_to_train_may_be_left_out_where_depth_chooses_it() -> None:
    short = {key: value for key, value in GOOD.items() if key != "train"}
    assert not accepts(SCHEMA, short) and accepts(SCHEMA, short | {"model": {"depth": 6}})
    assert accepts(SCHEMA, GOOD | {"model": {"depth": 6}})
