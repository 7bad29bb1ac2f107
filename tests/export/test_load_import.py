"""``sprout import hf``: what it takes, what it refuses, and that weights are in memory once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sproutlm.errors import CheckpointError
from sproutlm.export import import_folder, load, read, save
from sproutlm.export.huggingface import write_folder
from sproutlm.export.weights import DTYPES, INDEX, OneFile
from sproutlm.model import Transformer
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import train_tokenizer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def shards(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The model in several files."""
    write_folder(model.config, dict(model.state_dict()), tokenizer, tmp_path / "shards", shard_bytes=6000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    return tmp_path / "shards"


# --- memory ---------------------------------------------------------------------------------------------------------------


def test_no_value_is_read_before_it_is_asked_for_and_none_twice(
    shards: Path, model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a model would be in memory more than once: names and shapes come from the files' headers."""
    asked: list[str] = []
    plain = OneFile.tensor
    monkeypatch.setattr(OneFile, "tensor", lambda self, name, dtype: asked.append(name) or plain(self, name, dtype))
    _, state, _ = read(shards)
    assert asked == [] and len(state) == len(model.state_dict())
    import_folder(shards, tmp_path / "copied")
    assert asked == []
    load(shards)
    assert len(asked) == len(set(asked)) == len(model.state_dict())
    asked.clear()
    import_folder(shards, tmp_path / "cast", dtype="bf16")
    assert len(asked) == len(set(asked)) == len(model.state_dict())


@pytest.mark.parametrize("dtype", [None, *DTYPES.values()])
def test_tensors_read_in_parts_are_the_same(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sproutlm.export.weights.PART", 7)
    tensors = {
        "a": torch.randn(5, 9).bfloat16(), "b": torch.randn(0, 3), "c": torch.tensor(2.5), "d": torch.randn(14).half()
    }  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    file = OneFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert_close(file.tensor(name, dtype), tensor.to(dtype or tensor.dtype), **EXACT)


# --- types ----------------------------------------------------------------------------------------------------------------


def test_cast_on_request_writes_weights_and_config_in_the_type(
    shards: Path, model: Transformer, tmp_path: Path, sprout: Callable
) -> None:
    ran = sprout(
        "import", "hf", str(shards), str(tmp_path / "in"), "--dtype", "bf16", "--json", str(tmp_path / "r.json")
    )
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "r.json").read_text())["dtype"] == ["bfloat16"]
    assert json.loads((tmp_path / "in" / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    wanted = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    kept, _ = load(tmp_path / "in", None)
    assert_close(dict(kept.state_dict()), wanted, **EXACT)
    full, _ = load(tmp_path / "in")
    assert_close(dict(full.state_dict()), {name: tensor.float() for name, tensor in wanted.items()}, **EXACT)


def test_cast_that_would_make_infinities_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :3] = torch.tensor([7e4, -1e9, 65_504.0])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="up_proj.weight: 2 values are beyond the range of float16.*bfloat16"):
        import_folder(folder, tmp_path / "in", dtype="float16")
    assert not (tmp_path / "in").exists()
    with pytest.raises(CheckpointError, match="dtype: 'int4' is not one of float32, bfloat16"):
        import_folder(folder, tmp_path / "in", dtype="int4")


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_shards_that_are_not_all_there_are_named(shards: Path) -> None:
    """pitfall 32."""
    second = sorted(shards.glob("*.safetensors"))[1]
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=f"names files that are not there: {second.name}; copy the folder again"):
        read(shards)
    second.write_bytes(kept)
    index = (shards / INDEX).read_text()
    (shards / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"is part of a model, and {INDEX} is not there"):
        read(shards)
    (shards / INDEX).write_text(index)
    read(shards)
    save_file(load_file(sorted(shards.glob("*.safetensors"))[0]), second)
    with pytest.raises(CheckpointError, match=f"{second.name}: .* is in .*00001.*, too; shards of different models"):
        read(shards)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "int8"), (torch.float8_e4m3fn, "float8_e4m3fn"), (torch.uint8, "uint8")]
)
def test_quantised_weights_are_refused_by_name(dtype: torch.dtype, name: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"quantised files are not read.*model.norm.weight is {name}"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_key_value_heads": 3}, "n_heads=2 is not a multiple of n_kv_heads=3"),
        ({"head_dim": 7}, "7 channels.*odd"),
        ({"hidden_size": -16}, "hidden_size is -16; expected a number above 0"),
        ({"hidden_size": 16.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000; no model is that large"),
        ({"num_hidden_layers": 10_000}, "says 10000 layers, and the weights are"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2."),
        ({"num_hidden_layers": 1}, "not part of this model: model.layers.1."),
        ({"intermediate_size": 10**18}, "cannot exist|expected"),
        ({"rope_theta": 0}, "rope_theta"),
    ],
)
def test_config_with_impossible_sizes_is_a_sentence(change: dict[str, Any], expected: str, folder: Path) -> None:
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=expected):
        read(folder)


def test_tokenizer_much_smaller_than_the_model_is_pointed_out(model: Transformer, folder: Path, tmp_path: Path) -> None:
    """pitfall 9: a larger one is refused; a few spare rows are usual, half a vocabulary is not."""
    said: list[str] = []
    import_folder(folder, tmp_path / "a", say=said.append)
    assert not said
    small = train_tokenizer(["ab"], 272)
    wide = Transformer(model.config.model_copy(update={"vocab_size": 400})).init_weights(1)
    save(wide, small, tmp_path / "wide")
    import_folder(tmp_path / "wide", tmp_path / "b", say=said.append)
    assert len(said) == 1 and "272 ids and the model 400 rows" in said[0]


def test_folder_without_a_tokenizer_is_taken_and_said(folder: Path, tmp_path: Path, sprout: Callable) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    assert load(folder)[1] is None
    ran = sprout("import", "hf", str(folder), str(tmp_path / "in"))
    assert ran.code == 0 and "no tokenizer.json" in ran.err + ran.out
    assert "init_from" in ran.out and "sprout chat" not in ran.out


def test_pickles_and_unknown_models_end_in_one_sentence(folder: Path, tmp_path: Path, sprout: Callable) -> None:
    change_config(folder, architectures=["Qwen5ForCausalLM"])
    ran = sprout("import", "hf", str(folder), str(tmp_path / "in"))
    assert ran.code == 1 and "nearest is Qwen" in ran.err and "Traceback" not in ran.err
    change_config(folder, architectures=["Qwen3ForCausalLM"])
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")
    ran = sprout("import", "hf", str(folder), str(tmp_path / "in"))
    assert ran.code == 1 and "run any code" in ran.err and not (tmp_path / "in").exists()
    ran = sprout("import", "hf", str(folder / "pytorch_model.bin"), str(tmp_path / "in"))
    assert ran.code == 1 and "weights_only=True" in ran.err
