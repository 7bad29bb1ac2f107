"""Recipes: typed schema, YAML and key=value loading, errors with file and line."""

from .load import Loaded, dump_recipe, load_recipe, run_dir
from .model import ModelConfig
from .schema import Pipeline, Recipe, SourceConfig

__all__ = ["Loaded", "ModelConfig", "Pipeline", "Recipe", "SourceConfig", "dump_recipe", "load_recipe", "run_dir"]
