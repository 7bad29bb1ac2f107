"""Recipes: typed schema, YAML and key=value loading, errors with file and line."""

from .model import ModelConfig
from .schema import Pipeline, Recipe, SourceConfig

__all__ = ["ModelConfig", "Pipeline", "Recipe", "SourceConfig"]
