"""``sprout export``: what is written is loaded again, what that shows is printed, and a fault ends with code 2."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sproutlm.cli import main
from sproutlm.config.model import ModelConfig
from sproutlm.errors import CheckFailed
from sproutlm.export import gguf_vocabulary, read, save
from sproutlm.export.compare import check_folder
from sproutlm.model import Transformer
from sproutlm.tokenizer.tokenizer import Tokenizer

LOAD = importlib.import_module("sproutlm.export.load")  # the package's own name for it is the function


def test_hf_is_loaded_again_here_and_in_transformers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    command = ["export", "hf", str(run), str(tmp_path / "out"), "--shard-size", "10KB", "--json", str(report)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "loaded again: as float32, logits differ by up to 0 (they reach" in said
    assert "in transformers: logits differ by up to" in said
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) >= 2
    check = json.loads(report.read_text())["check"]
    assert check["here"] == 0 and check["transformers"] < 1e-4 and check["largest_logit"] > 0.5


def test_smaller_type_says_what_it_costs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "hf", str(run), str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    assert "as bfloat16, logits differ by up to 0.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    main(["export", "hf", str(tmp_path / "out"), str(tmp_path / "again"), "--no-check"])
    out = capsys.readouterr().out
    assert "Qwen3ForCausalLM, bfloat16" in out and "loaded again" not in out  # the source's own type is kept


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_folder_that_transformers_reads_otherwise_fails(
    damage: str, model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pitfall 43: keys that are missing or not known are a failed check, not a warning that scrolls by."""
    out = tmp_path / "out"
    save(model, tokenizer, out)
    kept = read(out)
    held = load_file(out / "model.safetensors")
    if damage == "missing":
        del held["model.layers.0.self_attn.q_norm.weight"]
    else:
        held["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(model.config.dim)
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(LOAD, "read", lambda *_: kept)  # our own reader would refuse it before
    with pytest.raises(CheckFailed, match="does not load this folder as it should.*(q_norm|q_proj.bias)"):
        check_folder(model.config, model.state_dict(), tokenizer, out)


def test_research_model_is_refused_with_a_way_out(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("smear", "x0_lambdas")
    config = ModelConfig(
        family="research", vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, research=parts
    )
    state: dict[str, Any] = dict(Transformer(config).state_dict())
    monkeypatch.setattr(LOAD, "load_state", lambda *_: (config, state, tokenizer))
    monkeypatch.setattr(LOAD, "locate", lambda path: type("S", (), {"folder": path, "step": 1}))
    for verb, out in (("hf", "out"), ("gguf", "x.gguf"), ("ollama", "out")):
        assert main(["export", verb, str(tmp_path), str(tmp_path / out)]) == 1
        assert "no other program knows" in (said := capsys.readouterr().err) and "distillation" in said
        assert "family: research with x0_lambdas, smear" in said
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every comparison with NaN is false, so a check of differences alone lets such a model pass."""
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"][3] = float("nan")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    for verb, out in (("hf", "out"), ("gguf", "x.gguf"), ("ollama", "out")):
        assert main(["export", verb, str(folder), str(tmp_path / out)]) == 1
        assert "norm.weight: holds NaN" in (said := capsys.readouterr().err) or "norm.weight holds NaN" in said
        assert not (tmp_path / out).exists()


@pytest.mark.parametrize("size", ["tiny", "-4GB", "0MB", ""])
def test_shard_size_that_is_none_is_a_sentence(
    size: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "hf", str(run), str(tmp_path / "out"), f"--shard-size={size}"]) == 1
    assert "not a size; give a number with KB, MB or GB" in capsys.readouterr().err


def test_gguf_says_what_was_found_in_llama_cpp(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (pip install xllamacpp)")
    assert main(["export", "gguf", str(run), str(tmp_path / "x.gguf")]) == 0
    said = capsys.readouterr()
    assert "qwen3, f32" in said.out and "tokenizer gpt2/deepseek-coder" in said.out
    assert "logits differ by up to 0 (they reach" in said.out
    assert "in llama.cpp: log-probabilities differ by up to" in said.out
    assert "the same token ids for 16 of 16 texts and prompts" in said.out
    assert "6 rows of the embedding without a token" in said.err
    assert main(["export", "ollama", str(run), str(tmp_path / "ollama"), "--type", "f16"]) == 0
    assert "ollama create NAME -f" in capsys.readouterr().out


def test_gguf_without_llama_cpp_says_that_it_was_not_tried(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")
    monkeypatch.setattr("sproutlm.export.gguf_llama_cpp.available", lambda: False)
    assert main(["export", "gguf", str(run), str(tmp_path / "x.gguf"), "--type", "f16"]) == 0
    said = capsys.readouterr()
    assert "loaded again: as f16" in said.out and "not tried in llama.cpp" in said.err


def test_other_token_ids_in_llama_cpp_fail_the_check(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (pip install xllamacpp)")
    made = gguf_vocabulary._byte_level
    monkeypatch.setattr(gguf_vocabulary, "_byte_level", lambda *a: dataclasses.replace(made(*a), merges=["a b"]))
    assert main(["export", "gguf", str(run), str(tmp_path / "x.gguf")]) == 2
    assert "llama.cpp gives other token ids" in capsys.readouterr().err
