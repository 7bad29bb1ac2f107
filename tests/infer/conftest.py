"""A tiny random model with a tokenizer of its own, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import random_model

from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["你好，世界！天地玄黄，宇宙洪荒。", "Hello there, world. What is 2 + 2? 😀🎉", "日月盈昃，辰宿列张。"] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    return random_model(tokenizer.vocab_size)


@pytest.fixture(scope="session")
def model_folder(model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sproutlm.export.huggingface import save

    folder = tmp_path_factory.mktemp("chat") / "model"
    save(model, tokenizer, folder)
    return folder
