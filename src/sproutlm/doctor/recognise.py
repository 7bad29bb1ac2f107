"""What a path on the command line is: by what lies in it, never by its name alone."""

from __future__ import annotations

from pathlib import Path

from ..data.files import find_files, kind_of, known_suffixes
from ..errors import SproutError

RECIPE_SUFFIXES = (".yaml", ".yml")


def recognise(path: Path) -> str:
    """One of recipe, tokenizer, stages, run, checkpoints, checkpoint, huggingface, shards, data; SproutError where none."""
    if path.suffix in RECIPE_SUFFIXES:
        return "recipe"
    if path.name == "tokenizer.json":
        return "tokenizer"
    if path.is_dir():
        return _folder(path)
    if path.exists() and kind_of(path) is None:
        raise SproutError(
            f"{path}: its suffix is not known. Give a data file ({known_suffixes()}), a recipe (.yaml), or the folder of "
            "a tokenizer, a checkpoint, a run or a Hugging Face model"
        )
    find_files(str(path))  # a missing file, or a pattern that matches none, is said with the nearest name
    return "data"


def _folder(path: Path) -> str:
    has = {entry.name for entry in path.iterdir()}
    if "model_config.json" in has or (path.name.startswith("step-") and has & {"trainer.json", "model.safetensors"}):
        return "checkpoint"
    if any(name.startswith("step-") for name in has):
        return "checkpoints"
    if "stages.json" in has:
        return "stages"
    if "checkpoints" in has or "metrics.jsonl" in has or (path / "model" / "config.json").is_file():
        return "run"
    if (path / "tokenizer" / "tokenizer.json").is_file() or (path / "data" / "train" / "manifest.json").is_file():
        return "run"  # prepared, and not yet trained
    if "config.json" in has:
        return "huggingface"
    if "tokenizer.json" in has or "tokenizer.model" in has:
        return "tokenizer"
    if "manifest.json" in has or "progress.json" in has or any(name.endswith(".ds") for name in has):
        return "shards"
    return "data"
