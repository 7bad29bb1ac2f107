"""GGUF files: every tensor and the way back, and a sentence for what llama.cpp would run otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_cases import CASES, GQA, MOE, YARN, config_of, random_model
from torch.testing import assert_close

from sproutlm.errors import CheckpointError, SproutError
from sproutlm.export import save
from sproutlm.export.gguf import TYPES, export_gguf, read_weights, write_gguf
from sproutlm.export.gguf_shape import interleaved
from sproutlm.model import Transformer
from sproutlm.tokenizer.cuts import Rules, pre_tokenizer
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import LEAST_VOCAB_SIZE, train_tokenizer

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")


def fields(file: Path) -> dict[str, Any]:
    return {name: part.contents() for name, part in gguf.GGUFReader(file).fields.items()}


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    return Tokenizer(json.dumps(tokenizer.backend_json | parts), tokenizer.config)


@pytest.mark.parametrize("case", CASES)
def test_float32_file_holds_every_weight(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(config_of(CASES[case], tokenizer.vocab_size + 3))
    written = write_gguf(model.config, model.state_dict(), tokenizer, tmp_path / "x.gguf", kind="f32")
    state = read_weights(tmp_path / "x.gguf", model.config)
    # A norm's weight + 1 is rounded once.
    exact: Any = {"rtol": 0, "atol": 1.2e-7 if model.config.norm_offset else 0}
    assert_close(state, dict(model.state_dict()), **exact)
    assert written.types == {"f32": len(gguf.GGUFReader(tmp_path / "x.gguf").tensors)}


def test_heads_are_reordered_for_llama_alone() -> None:
    """Golden: of 2 heads with 4 channels, the pairs (i, i + 2) become neighbours."""
    assert interleaved(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind", TYPES)
def test_vectors_and_routers_stay_float32(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(config_of(CASES["qwen2-moe"], tokenizer.vocab_size))
    write_gguf(model.config, model.state_dict(), tokenizer, tmp_path / "x.gguf", kind=kind)
    for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors:
        name = tensor.tensor_type.name.lower()
        if len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name:
            assert name == "f32", tensor.name
        elif tensor.name in ("token_embd.weight", "output.weight"):
            assert name == ("q8_0" if kind[:2] in ("q4", "q5") else kind)
        else:
            assert name == kind, tensor.name


def test_rows_that_blocks_do_not_fit_are_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(config_of({"family": "llama", "n_heads": 4, "ffn_dim": 72}, tokenizer.vocab_size))
    written = write_gguf(model.config, model.state_dict(), tokenizer, tmp_path / "x.gguf", kind="q8_0")
    assert written.types["f16"] == 2
    assert any("2 tensors were written as f16: q8_0 takes rows of a multiple of 32" in note for note in written.notes)


def test_metadata_names_the_shape_and_the_stop_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of({**CASES["qwen3-wide-heads"], "rope_theta": 5e5, "norm_eps": 1e-5}, tokenizer.vocab_size + 3)
    write_gguf(config, random_model(config).state_dict(), tokenizer, tmp_path / "x.gguf", kind="f32", name="small one")
    held = fields(tmp_path / "x.gguf")
    numbers = {
        "block_count": 2, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 24,
        "rope.dimension_count": 24, "rope.freq_base": 5e5, "vocab_size": tokenizer.vocab_size + 3,
    }  # fmt: skip
    assert held["general.architecture"] == "qwen3" and held["general.name"] == "small one"
    assert {name: held[f"qwen3.{name}"] for name in numbers} == numbers
    assert held["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    ids = {name: held[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "padding", "unknown")}
    end = tokenizer.token_id("<|im_end|>")
    assert ids == {"eos": tokenizer.eos_id, "eot": end, "padding": tokenizer.pad_id, "unknown": tokenizer.unk_id}
    assert held["tokenizer.ggml.pre"] == "deepseek-coder" and held["tokenizer.ggml.add_bos_token"] is False
    assert held["tokenizer.chat_template"].endswith(tokenizer.chat_template or "?")
    types = held["tokenizer.ggml.token_type"]
    assert len(types) == tokenizer.vocab_size + 3 and types[end] == 3 and types[-3:] == [5, 5, 5]


def test_context_is_what_llama_cpp_computes_as_we_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It has no sliding windows for these families: within one window the answers are the same."""
    for shape, context in (
        ({"family": "mistral", **GQA, "sliding_window": 40}, 40),
        ({"family": "qwen3", **GQA, "sliding_window": 40, "window_pattern": "FS"}, 40),
        ({"family": "gemma2", **GQA, "sliding_window": 40, "window_pattern": "SF"}, 128),
        ({"family": "gemma2", **GQA, "sliding_window": 40, "window_pattern": "FS"}, 40),
        ({"family": "llama", **GQA, "rope_scaling": {**YARN, "kind": "dynamic"}}, 32),
    ):
        config = config_of(shape, tokenizer.vocab_size)
        written = write_gguf(config, random_model(config).state_dict(), tokenizer, tmp_path / "x.gguf", kind="f32")
        assert (
            fields(tmp_path / "x.gguf")[f"{fields(tmp_path / 'x.gguf')['general.architecture']}.context_length"]
            == context
        )
        assert any(f"{context} tokens, not 128" in note for note in written.notes) == (context != 128)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "research": ({"family": "research", "n_heads": 4}, "research.*distillation"),
    "shared heads": ({"family": "dots1", **GQA, "moe": {**MOE, "shared_dim": 32}}, "as many key/value heads"),
    "qwen3 biases": ({"family": "qwen3", **GQA, "attention_bias": True}, "no place for attention_bias"),
    "exact gelu": ({"family": "gpt2", "n_heads": 4, "activation": "gelu"}, "tanh form of GELU"),
    "untied gemma": ({"family": "gemma", **GQA, "tie_embeddings": False}, "shares the embedding"),
    "uncapped": ({"family": "gemma2", **GQA, "attention_softcap": 0.0}, "always caps.*attention_softcap"),
    "scores": ({"family": "gemma2", **GQA, "attention_scale": 0.1}, "attention_scale"),
    "plain weights": ({"family": "qwen3_moe", **GQA, "moe": {**MOE, "normalize": False}}, "normalize=True"),
    "normalised": (
        {"family": "qwen2_moe", **GQA, "moe": {**MOE, "shared_dim": 32, "shared_gate": True}},
        "normalize=False",
    ),
    "dense layer": ({"family": "qwen3_moe", **GQA, "moe": {**MOE, "dense_layers": (0,)}}, "layers without experts"),
    "yarn": ({"family": "llama", **GQA, "rope_scaling": {**YARN, "beta_fast": 8.0}}, "beta_fast=32"),
    "llama3": ({"family": "qwen2", **GQA, "rope_scaling": {"kind": "llama3", "factor": 8.0}}, "no llama3 scaling"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shape_that_llama_cpp_would_compute_otherwise_is_refused(
    case: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Most were tried with the refusal taken out: llama.cpp did not load the file, or its answers differed. Exact GELU and
    `truncate: false` are refused out of caution."""
    shape, sentence = REFUSED[case]
    config = config_of(shape, tokenizer.vocab_size)
    with pytest.raises(SproutError, match=sentence):
        write_gguf(config, Transformer(config).state_dict(), tokenizer, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_that_llama_cpp_reads_otherwise_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def refused(other: Tokenizer, sentence: str) -> None:
        config = config_of({"n_heads": 4}, other.vocab_size)
        with pytest.raises(SproutError, match=sentence):
            write_gguf(config, Transformer(config).state_dict(), other, tmp_path / "x.gguf")

    for rules in (Rules(digits="groups"), Rules(spaces="runs"), Rules(cjk="single")):
        cut = json.loads(pre_tokenizer(rules).__getstate__())
        refused(changed(tokenizer, pre_tokenizer=cut), "no name for its way of cutting.*digits: single")
    refused(changed(tokenizer, normalizer={"type": "Lowercase"}), "rewrites text before encoding .Lowercase")
    prefix = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    refused(changed(tokenizer, pre_tokenizer=prefix), "cuts text by a rule.*ByteLevel")
    unigram = train_tokenizer(
        ["春眠不觉晓 the river and the hill"] * 3, LEAST_VOCAB_SIZE + 20, kind="sentencepiece_unigram"
    )
    refused(unigram, "no bytes to fall back on.*sentencepiece_bpe")
    assert list(tmp_path.iterdir()) == []


def test_composed_form_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of({"n_heads": 4}, tokenizer.vocab_size)
    other = changed(tokenizer, normalizer={"type": "NFC"})
    notes = write_gguf(config, random_model(config).state_dict(), other, tmp_path / "x.gguf").notes
    assert any("NFC" in note for note in notes)


def test_damaged_weights_leave_no_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(config_of({"n_heads": 4}, tokenizer.vocab_size))
    (tmp_path / "x.gguf").write_text("GGUF earlier")
    state = dict(model.state_dict())
    for value, kind, sentence in ((float("nan"), "f32", "NaN or infinity"), (1e6, "f16", "beyond f16's 65504")):
        state["layers.1.mlp.up_proj.weight"] = torch.full_like(state["layers.1.mlp.up_proj.weight"], value)
        with pytest.raises(SproutError, match=f"layers.1.mlp.up_proj.weight.*{sentence}"):
            write_gguf(model.config, state, tokenizer, tmp_path / "x.gguf", kind=kind)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_text() == "GGUF earlier"


def test_targets_and_types_that_cannot_be_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SproutError, match="q3.*choose one of f32, f16"):
        export_gguf(folder, tmp_path / "x.gguf", kind="q3")
    with pytest.raises(SproutError, match="is a folder; give a file"):
        export_gguf(folder, tmp_path)
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(SproutError, match="is no GGUF file; nothing was written"):
        export_gguf(folder, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "precious"
    with pytest.raises(SproutError, match="no does not exist; make it first"):
        export_gguf(folder, tmp_path / "no" / "x.gguf")


def test_model_without_tokenizer_is_refused(model: Transformer, tmp_path: Path) -> None:
    save(model, None, tmp_path / "hf")
    with pytest.raises(SproutError, match="no tokenizer beside this model"):
        export_gguf(tmp_path / "hf", tmp_path / "x.gguf")


def test_tokenizer_with_more_ids_than_rows_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_of({"n_heads": 4}, tokenizer.vocab_size - 1)
    with pytest.raises(CheckpointError, match="use the tokenizer that the model was trained with"):
        write_gguf(config, Transformer(config).state_dict(), tokenizer, tmp_path / "x.gguf")


def test_type_follows_the_source(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(model, tokenizer, tmp_path / "hf", dtype="bfloat16")
    report = export_gguf(tmp_path / "hf", tmp_path / "x.gguf", check=False)
    assert report["type"] == "bf16" and report["tensors"]["bf16"] > 0
    assert_close(
        read_weights(tmp_path / "x.gguf", model.config),
        {n: t.bfloat16().float() for n, t in model.state_dict().items()}, rtol=0, atol=0,
    )  # fmt: skip


def test_missing_package_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SproutError, match=r"pip install .sproutlm\[export\]"):
        export_gguf(folder, tmp_path / "x.gguf")
