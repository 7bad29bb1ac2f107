"""Weights as views of their files: nothing copied, the files never changed, and what is cast or laid out anew stands alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from sproutlm.config.model import ModelConfig, MoEConfig
from sproutlm.errors import CheckpointError
from sproutlm.export import load, save
from sproutlm.export.weights import OneFile, cast
from sproutlm.model import Transformer
from sproutlm.model.meta import on_meta
from sproutlm.tokenizer.tokenizer import Tokenizer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}
LINUX = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="mappings are looked up in /proc, which is Linux's"
)


def mapped(tensor: torch.Tensor) -> str:
    """The file that the tensor's first value lies in, or "" for memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, last = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= tensor.data_ptr() < high:
            return last if last.endswith(".safetensors") else ""
    raise AssertionError("not mapped at all")


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.safetensors")}


@LINUX
def test_weights_that_need_no_cast_are_views_and_others_are_not(folder: Path) -> None:
    """Else reading 1.2 B weights takes seconds, or a cast model has the file beside it in memory."""
    assert all(mapped(p).endswith("hf/model.safetensors") for p in load(folder)[0].parameters())
    assert not any(mapped(p) for p in load(folder, torch.bfloat16)[0].parameters())
    assert torch.equal(load(folder, torch.bfloat16)[0].norm.weight, load(folder)[0].norm.weight.bfloat16())


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_training_a_loaded_model_leaves_its_files_as_they_are(kind: str, request: pytest.FixtureRequest) -> None:
    where: Path = request.getfixturevalue(kind)
    before = digests(where)
    model, _ = load(where)
    model.train()
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(8)[None]).float().square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, first[name]) for name, p in model.named_parameters() if p.grad.abs().sum() > 0)
    assert before and digests(where) == before
    assert_close(dict(load(where)[0].named_parameters()), first, **EXACT)


@pytest.mark.skipif(os.name == "nt", reason="nothing is mapped on Windows")
def test_a_model_outlives_the_files_it_was_read_from(folder: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    """An export over the folder that a model came from replaces the files; the model still reads the old ones."""
    loaded, _ = load(folder)
    save(Transformer(model.config).init_weights(9), tokenizer, folder)
    save(loaded, tokenizer, folder)
    assert_close(dict(load(folder)[0].state_dict()), dict(model.state_dict()), **EXACT)
    (folder / "model.safetensors").unlink()
    assert_close(dict(loaded.state_dict()), dict(model.state_dict()), **EXACT)


@pytest.mark.parametrize("lead", range(8, 12))
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_values_at_odd_places_of_a_file_are_read_and_aligned(
    lead: int, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    values = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(4)}
    spans = {"a": ("BF16", [0, 30]), "b": ("F32", [30, 46])}
    entries = {n: {"dtype": t, "shape": list(values[n].shape), "data_offsets": at} for n, (t, at) in spans.items()}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8 + lead)
    data = b"".join(bytes(v.view(torch.uint8).numpy()) for v in values.values())
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    file = OneFile(tmp_path / "x.safetensors")
    for name, value in values.items():
        read = file.tensor(name, dtype)
        assert_close(read, value.to(dtype or value.dtype), **EXACT)
        assert read.data_ptr() % read.itemsize == 0


def test_a_file_cut_short_while_it_is_read_is_a_sentence(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(5000)}, tmp_path / "x.safetensors")
    file = OneFile(tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", 300)
    with pytest.raises(CheckpointError, match="x.safetensors: a: not a whole safetensors file"):
        file.tensor("a", torch.bfloat16)


def test_overflow_is_found_beside_not_a_number() -> None:
    with pytest.raises(CheckpointError, match="w: 1 values are beyond the range of float16"):
        cast(torch.tensor([float("nan"), 7e4, float("inf")]), torch.float16, "w")
    assert cast(torch.tensor([float("nan"), float("inf"), 65_504.0]), torch.float16, "w").isnan()[0]


@LINUX
@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_laid_out_anew_keeps_no_page_of_its_file(
    family: str, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's transposed and fused matrices, stacked experts: each is contiguous and owns its memory, and is read without a
    view of the file, whose pages would stay beside it."""
    moe = MoEConfig(n_experts=4, top_k=2, expert_dim=8) if family == "qwen3_moe" else None
    sizes = {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "ffn_dim": 24, "max_seq_len": 32}
    made = Transformer(ModelConfig(family=family, moe=moe, **sizes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    save(made, None, tmp_path / "hf")
    viewed: list[str] = []
    plain = OneFile.tensor
    monkeypatch.setattr(OneFile, "tensor", lambda self, name, to: viewed.append(name) or plain(self, name, to))
    loaded = load(tmp_path / "hf", dtype)[0]
    assert viewed and not [name for name in viewed if "experts" in name or "c_attn" in name or "c_fc.weight" in name]
    assert_close(dict(loaded.state_dict()), {n: t.to(dtype or t.dtype) for n, t in made.state_dict().items()}, **EXACT)
    anew = [p for n, p in loaded.named_parameters() if "experts" in n or (family == "gpt2" and "attention.q_proj" in n)]
    assert anew and all(p.is_contiguous() and not mapped(p) for p in anew)
    storages = {p.untyped_storage().data_ptr() for p in loaded.parameters()}
    assert dtype is None or len(storages) == len(list(loaded.parameters()))


def test_a_shape_without_values_imports_no_compiler(model: Transformer) -> None:
    """torch imports torch._dynamo to draw on the meta device: a second, for values that are not there."""
    code = (
        "import sys; from sproutlm.config.model import ModelConfig; from sproutlm.model.meta import on_meta;"
        "m = on_meta(ModelConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, ffn_dim=24, max_seq_len=32));"
        "assert all(p.is_meta for p in m.parameters()); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    made = on_meta(model.config)
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
