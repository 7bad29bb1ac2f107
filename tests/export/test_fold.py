"""``embedding_norm`` reaches every other program: the exported weights compute what the trained model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sproutlm
from sproutlm.config.model import ModelConfig
from sproutlm.export.compare import check_folder, check_gguf
from sproutlm.export.fold import folded
from sproutlm.export.gguf import write_gguf
from sproutlm.export.huggingface import save
from sproutlm.model import Transformer
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import train_tokenizer

SHAPE: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "max_seq_len": 64,
    "embedding_norm": True,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a quick brown fox, 一只敏捷的棕色狐狸 " * 20], 300)


def model_of(tokenizer: Tokenizer, **changes: Any) -> Transformer:
    model = Transformer(ModelConfig(**SHAPE | {"vocab_size": tokenizer.vocab_size} | changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


FAMILIES = [("qwen3", False), ("qwen3", True), ("llama", True), ("gpt2", False), ("qwen2", True), ("mistral", False)]


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_a_hugging_face_folder_computes_the_same(family: str, tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer, family=family, tie_embeddings=tied)
    save(model, tokenizer, tmp_path / "out")
    found, _ = sproutlm.load(tmp_path / "out")
    assert not found.config.embedding_norm and not found.config.tie_embeddings
    report = check_folder(
        model.config, model.state_dict(), tokenizer, tmp_path / "out"
    )  # refuses what transformers finds
    assert report["here"] < 1e-4 * report["largest_logit"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_computes_the_same(tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model, file = model_of(tokenizer, tie_embeddings=tied), tmp_path / "model.gguf"
    write_gguf(model.config, model.state_dict(), tokenizer, file, kind="f32")
    report = check_gguf(model.config, model.state_dict(), tokenizer, file, "f32")
    assert report["here"] < 1e-4 * report["largest_logit"]


def test_the_head_of_a_tied_model_keeps_the_rows_as_they_were(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, tie_embeddings=True)
    state = dict(model.state_dict())
    config, changed = folded(model.config, state)
    assert torch.equal(changed["lm_head.weight"], state["embed_tokens.weight"])
    rms = changed["embed_tokens.weight"].square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-3, atol=1e-3)
    assert folded(config, changed) == (config, changed), "what is folded stays as it is"


def test_without_it_nothing_changes(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, embedding_norm=False)
    state = model.state_dict()
    assert folded(model.config, state)[1] is state


def test_the_norm_makes_a_difference_and_is_that_of_each_row(tokenizer: Tokenizer) -> None:
    normed = model_of(tokenizer, tie_embeddings=False)
    plain = model_of(tokenizer, embedding_norm=False, tie_embeddings=False)
    x = torch.arange(20)[None]
    with torch.no_grad():
        before = normed(x)
        assert not torch.allclose(plain(x), before, atol=1e-2)
        normed.embed_tokens.weight *= torch.rand(tokenizer.vocab_size, 1) + 0.5  # the length of a row is of no account
        torch.testing.assert_close(normed(x), before, rtol=1e-3, atol=1e-3)
