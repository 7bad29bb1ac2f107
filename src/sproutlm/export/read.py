"""Hugging Face folders read: the family recognised, every tensor accounted for, nothing in memory before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import CheckpointError, SproutError
from ..families.foreign import Recognised, recognise
from .weights import PICKLES, SafetensorsFolder, read_json, refused_pickle

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def read(
    folder: Path | str, dtype: torch.dtype | None = None, say: Callable[[str], None] | None = None
) -> tuple[ModelConfig, Mapping[str, Tensor], Tokenizer | None]:
    """A Hugging Face folder -> config, tensors by our names, tokenizer or None where it has no tokenizer.json.

    Names, shapes and types are checked now; values are read when a tensor is asked for, in the file's own type or in
    ``dtype``. ``say`` hears about what was settled in an unusual way. Raises SproutError (CheckpointError for damaged
    files) that names the file, and the field or tensor at fault.
    """
    folder = Path(folder)
    try:
        found = recognise_folder(folder)
        config = found.family.config_from_hf(found.config)
        state = found.family.state_from_hf(config, SafetensorsFolder(folder, dtype))
    except CheckpointError:
        raise
    except SproutError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if say is not None:
        for note in found.notes:
            say(f"{folder}: {note}")
    tokenizer = read_tokenizer(folder)
    check_vocabulary(config, tokenizer, str(folder))
    return config, state, tokenizer


def recognise_folder(folder: Path) -> Recognised:
    """The family of a folder, by its config.json; SproutError where it is none that is known."""
    if folder.is_file():
        what = (
            refused_pickle(folder)
            if any(map(folder.match, PICKLES))
            else f"{folder} is a file; give the folder that it is in"
        )
        raise CheckpointError(what)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a Hugging Face folder")
    return recognise(read_json(folder / "config.json"))


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None where it has no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from ..tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer | None, where: str) -> None:
    """CheckpointError where the tokenizer can write ids that the model has no row for. Spare rows are fine."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, but the model's embedding only "
            f"{config.vocab_size} rows: use the tokenizer that the model was trained with"
        )
