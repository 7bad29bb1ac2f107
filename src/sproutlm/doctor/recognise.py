"""What a path on the command line is: by what lies in it, never by its name alone."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import SourceConfig
from ..data.files import find_files, kind_of, known_suffixes
from ..errors import SproutError

RECIPE_SUFFIXES = (".yaml", ".yml")
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
TOKENIZER_SUFFIXES = (".model", ".tiktoken", ".bpe")
HUB_SUFFIXES = (".safetensors",)


def recognise(path: Path) -> str:
    """One of recipe, template, tokenizer, stages, run, checkpoints, checkpoint, huggingface, shards, tokens, data.

    SproutError where it is none of them.
    """
    from .streams import is_stream

    if path.suffix in RECIPE_SUFFIXES:
        return "recipe"
    if path.suffix in TEMPLATE_SUFFIXES and not path.is_dir():
        return "template"
    if path.name == "tokenizer.json" or (path.is_file() and path.suffix in TOKENIZER_SUFFIXES):
        return "tokenizer"
    if path.is_dir():
        return _folder(path)
    if is_stream(SourceConfig(path=str(path))):
        return "tokens"
    if path.suffix in HUB_SUFFIXES and path.is_file():
        raise SproutError(f"{path}: weights alone; give the folder that holds them: sprout doctor {path.parent}")
    if path.exists() and kind_of(path) is None:
        raise SproutError(
            f"{path}: its suffix is not known. Give a data file ({known_suffixes()}), token ids (.bin, .ds), a recipe "
            "(.yaml), a chat template (.jinja), a tokenizer's file, or the folder of a tokenizer, a checkpoint, a run or a "
            "Hugging Face model"
        )
    find_files(str(path))  # a missing file, or a pattern that matches none, is said with the nearest name
    return "data"


def _folder(path: Path) -> str:
    from .streams import is_stream

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
    if "manifest.json" in has or "progress.json" in has:
        return "shards"
    if is_stream(SourceConfig(path=str(path))):
        return "tokens"
    if not any(kind_of(Path(name)) for name in has) and any(Path(name).suffix in TEMPLATE_SUFFIXES for name in has):
        name = next(name for name in sorted(has) if Path(name).suffix in TEMPLATE_SUFFIXES)
        raise SproutError(f"{path}: holds chat templates; give one of them: sprout doctor {path / name}")
    return "data"
