"""A tiny random model and its tokenizer, for what is measured on them."""

from __future__ import annotations

import pytest

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["你好，世界！天地玄黄，宇宙洪荒。", "Hello there, world. What is 2 + 2?", "日月盈昃，辰宿列张。"] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, n_layers=2, n_heads=2, max_seq_len=96, dropout=0.5)
    return Transformer(config).init_weights(3)
