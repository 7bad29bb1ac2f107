"""One small tokenizer for all tests of this room, trained on the text of tokenizer_examples.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_examples import TEXTS

from sproutlm.tokenizer import ChatTemplate, Tokenizer, train_tokenizer


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
