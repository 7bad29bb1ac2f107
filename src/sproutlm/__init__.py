"""SproutLM: raw text to a language model that people can talk to. ``sproutlm.load(path)`` gives a model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model.transformer import Transformer
    from .tokenizer.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path) -> tuple[Transformer, Tokenizer | None]:
    """Load the model and tokenizer of a run folder, a checkpoint or a Hugging Face folder; nothing is downloaded.

    The tokenizer is None for a Hugging Face folder without ``tokenizer.json``. ``model(tokens)`` maps (batch, seq) int64 to (batch, seq, vocab) logits. Raises ``SproutError`` where there is none.
    """
    from .export.load import load as load_folder  # torch is imported here, not with the package

    return load_folder(path)
