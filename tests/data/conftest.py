"""One small tokenizer for the tests that encode, trained on text that stands in this file, and ways to write rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.tokenizer import ChatTemplate, Tokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. What is 2 + 2? The answer is 4.\n",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n",
] * 5


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.of(tokenizer)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """``jsonl(rows, name)``: a file of them below ``tmp_path``."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
