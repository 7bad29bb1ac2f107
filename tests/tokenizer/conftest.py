"""One small tokenizer for all tests of this room, trained on text that stands in this file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sproutlm.tokenizer import ChatTemplate, Tokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's the fox's day, isn't it?\n",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n",
    "What is 2 + 2? The answer is 4. What is 12 + 30? The answer is 42.\n\n",
    "def add(a, b):\n    return a + b\n",
    "She said: “hello”, and the village answered with the same hello.\r\n",
] * 5


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 420)


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.of(tokenizer)
