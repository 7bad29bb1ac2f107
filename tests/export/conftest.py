"""A tokenizer, a model and a run, small enough to be made in every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.export import save
from sproutlm.model import Transformer
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import LEAST_VOCAB_SIZE, train_tokenizer
from sproutlm.train.checkpoint import Checkpointer

SPARE_ROWS = 6  # rows of the embedding beyond the tokenizer's ids


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["春眠不觉晓，处处闻啼鸟。", "the river and the hill and the river"], LEAST_VOCAB_SIZE + 10)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + SPARE_ROWS, dim=16, n_layers=2, n_heads=2, ffn_dim=24, max_seq_len=64,
        tie_embeddings=False,
    )  # fmt: skip
    made = Transformer(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return made


def checkpoint_files(config: ModelConfig, tokenizer: Tokenizer, tmp: Path) -> dict[str, str]:
    tokenizer.save(tmp)
    names = ("tokenizer.json", "tokenizer_config.json")
    return {"model_config.json": config.model_dump_json(), **{n: (tmp / n).read_text("utf-8") for n in names}}


@pytest.fixture
def run(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 5 and 10 and no final model; the newer one holds ``model``."""
    folder = tmp_path / "run"
    files = checkpoint_files(model.config, tokenizer, tmp_path / "tokenizer")
    saver = Checkpointer(folder / "checkpoints", keep_last=5)
    for step, scale in ((5, 0.5), (10, 1.0)):
        tensors = {name: tensor * scale for name, tensor in model.state_dict().items()}
        saver.save(step, tensors, {"x": torch.zeros(1)}, {"step": step}, files)
    return folder


@pytest.fixture
def folder(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save(model, tokenizer, tmp_path / "hf")
    return tmp_path / "hf"
