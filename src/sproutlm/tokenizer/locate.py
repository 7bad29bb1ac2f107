"""Where a tokenizer stands, and what kind of file it is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SproutError

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"


@dataclass(frozen=True, slots=True)
class Place:
    """A tokenizer's file and its kind: ``json``, ``sentencepiece`` or ``tiktoken`` (``file`` may be an encoding's name)."""

    kind: str
    file: Path | str


def find_tokenizer(path: str | os.PathLike[str]) -> Place:
    """The tokenizer that ``path`` names: a folder, a file, or a tiktoken encoding (``gpt2``, ``tiktoken:gpt2``)."""
    from .tiktoken_import import is_encoding_name, looks_like_ranks

    where = Path(path)
    if not where.exists() and is_encoding_name(str(path)):
        return Place("tiktoken", str(path))
    if where.is_file() and where.name != JSON:
        if where.suffix == ".json":
            return Place("json", where)
        if where.suffix in (".tiktoken", ".bpe") or looks_like_ranks(where):
            return Place("tiktoken", where)
        if where.suffix == ".model":
            return Place("sentencepiece", where)
        raise SproutError(
            f"{path}: not a tokenizer's file; expected tokenizer.json, tokenizer.model (SentencePiece) or NAME.tiktoken"
        )
    folder = find_tokenizer_folder(where)
    if (folder / JSON).is_file():
        return Place("json", folder / JSON)
    model = folder / SENTENCEPIECE  # Llama 3 ships tiktoken ranks under this name
    return Place("tiktoken" if looks_like_ranks(model) else "sentencepiece", model)


def find_tokenizer_folder(path: Path) -> Path:
    """The folder that holds ``tokenizer.json``: ``path``, or inside a run its ``model/`` or newest whole checkpoint.

    Where there is none, a folder that holds ``tokenizer.model``.
    """
    if path.name in (JSON, SENTENCEPIECE) and path.is_file():
        return path.parent
    if not path.exists():
        raise SproutError(
            f"{path}: no such folder; give a tokenizer's folder or file, a run folder, a Hugging Face folder, or the "
            "name of a tiktoken encoding (gpt2, cl100k_base, o200k_base)"
        )
    checkpoints = sorted(path.glob("checkpoints/step-*"), reverse=True)
    whole = [folder for folder in checkpoints if (folder / "COMPLETE").exists()]
    for name in (JSON, SENTENCEPIECE):
        for folder in (path, path / "model", *whole, path / "tokenizer"):
            if (folder / name).is_file():
                return folder
    raise SproutError(
        f"{path}: no tokenizer.json there, nor in its model/ or checkpoints/, and no tokenizer.model; give a tokenizer's "
        "folder, a run folder or a Hugging Face folder, or train one with `sprout tokenizer train`"
    )


def config_beside(file: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` and ``chat_template.jinja`` beside a tokenizer's file, as one; empty where absent."""
    config_file, jinja = file.parent / "tokenizer_config.json", file.parent / "chat_template.jinja"
    config = parse_object(read_text(config_file), str(config_file)) if config_file.exists() else {}
    if jinja.exists():
        config["chat_template"] = read_text(jinja)
    return config


def read_bytes(file: Path) -> bytes:
    """The file's bytes, or a sentence."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise SproutError(f"{file}: cannot be read ({error.strerror})") from None


def read_text(file: Path) -> str:
    """The file's text, or a sentence."""
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SproutError(f"{file}: not UTF-8 text (byte {error.start}); the file is damaged, copy it again") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object, or a sentence that says where it breaks off."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        what = "it breaks off there" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else error.msg
        raise SproutError(f"{where}:{error.lineno}: not JSON ({what}); the file is damaged, copy it again") from None
    except RecursionError:
        raise SproutError(f"{where}: nested deeper than any such file is; the file is damaged, copy it again") from None
    if not isinstance(value, dict):
        raise SproutError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
