"""Tokenizer, its training, the chat template and the streaming decoder."""

from __future__ import annotations

from .stream import StreamDecoder
from .template import CHATML, ChatTemplate, Rendered, check_template
from .tokenizer import Tokenizer
from .train import train_from_files, train_tokenizer

__all__ = [
    "CHATML",
    "ChatTemplate",
    "Rendered",
    "StreamDecoder",
    "Tokenizer",
    "check_template",
    "train_from_files",
    "train_tokenizer",
]
