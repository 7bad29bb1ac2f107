"""The JSON Schema of recipes, for editors: names complete, descriptions show, a wrong key is underlined."""

from __future__ import annotations

import copy
from typing import Any

from pydantic.json_schema import models_json_schema

from .clean import CleanRecipe
from .schema import Pipeline, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Draft 2020-12: a recipe, a pipeline where there are ``stages``, one of cleaning where there is ``clean``; the short forms are valid too."""
    _, schema = models_json_schema([(Recipe, "validation"), (Pipeline, "validation"), (CleanRecipe, "validation")])
    definitions = schema["$defs"]
    source: dict[str, Any] = {"$ref": "#/$defs/SourceConfig"}
    path: dict[str, Any] = {"type": "string", "description": "File, glob, folder or synth:KIND."}
    sources: list[dict[str, Any]] = [path, source, {"type": "array", "minItems": 1, "items": {"anyOf": [path, source]}}]
    _replace(definitions["DataConfig"], "train", sources)
    _replace(definitions["DataConfig"], "validation", [{"$ref": "#/$defs/HoldoutConfig"}, *sources, {"type": "null"}])
    _replace(definitions["TokenizerConfig"], "train_on", sources)
    _replace(definitions["CleanConfig"], "sources", sources)
    _replace(definitions["DecontaminateStep"], "against", sources)
    folder = {"type": "string", "description": "A tokenizer's folder, a run folder or a Hugging Face folder."}
    for section in ("Recipe", "TokenizerStage"):
        _replace(definitions[section], "tokenizer", [folder, {"$ref": "#/$defs/TokenizerConfig"}])
    # How to train may be left out where `model.depth` chooses it.
    recipe = definitions["Recipe"]
    recipe["required"] = [name for name in recipe["required"] if name != "train"]
    dialled = {"properties": {"model": {"type": "object", "required": ["depth"]}}, "required": ["model"]}
    recipe["anyOf"] = [{"required": ["train"]}, dialled]
    # A training stage holds a recipe whose name and run folder come from the stage.
    stage_recipe = copy.deepcopy(definitions["Recipe"])
    stage_recipe["title"] = "StageRecipe"
    stage_recipe["required"] = [name for name in stage_recipe["required"] if name != "name"]
    del stage_recipe["properties"]["run"]
    definitions["StageRecipe"] = stage_recipe
    _replace(definitions["TrainStage"], "recipe", [{"$ref": "#/$defs/StageRecipe"}])
    return {
        "$schema": DIALECT,
        "title": "SproutLM recipe",
        "type": "object",
        "if": {"required": ["stages"]},
        "then": {"$ref": "#/$defs/Pipeline"},
        "else": {
            "if": {"required": ["clean"]},
            "then": {"$ref": "#/$defs/CleanRecipe"},
            "else": {"$ref": "#/$defs/Recipe"},
        },
        "$defs": definitions,
    }


def _replace(section: dict[str, Any], name: str, choices: list[dict[str, Any]]) -> None:
    old = section["properties"][name]
    kept = {key: old[key] for key in ("title", "description", "default") if key in old}
    section["properties"][name] = kept | (choices[0] if len(choices) == 1 else {"anyOf": choices})
