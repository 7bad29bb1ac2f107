"""``load``: a run, a checkpoint or a Hugging Face folder, and a sentence for everything that can be wrong with it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sproutlm.errors import CheckpointError, SproutError
from sproutlm.export import load, load_state, save
from sproutlm.export.load import locate
from sproutlm.export.weights import INDEX
from sproutlm.model import Transformer
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import train_tokenizer
from sproutlm.train.checkpoint import Checkpointer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def test_run_loads_its_newest_checkpoint(run: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    loaded, tok = load(run)
    assert_close(dict(loaded.state_dict()), dict(model.state_dict()), **EXACT)
    assert tok is not None and tok.fingerprint == tokenizer.fingerprint
    config, state, _ = load_state(run)
    assert config == model.config
    assert_close(state, dict(model.state_dict()), **EXACT)
    older, _ = load(run / "checkpoints" / "step-00000005")
    assert torch.equal(older.norm.weight, model.norm.weight * 0.5)


def test_final_model_of_a_run_comes_before_its_checkpoints(run: Path, model: Transformer) -> None:
    with torch.no_grad():
        other = Transformer(model.config).init_weights(4)
    save(other, None, run / "model")
    assert_close(dict(load(run)[0].state_dict()), dict(other.state_dict()), **EXACT)
    assert locate(run).kind == "huggingface"


def test_damaged_newest_checkpoint_is_passed_over_and_said(
    run: Path, model: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    """pitfall 27: found by checksum; the one before it is used."""
    newest = run / "checkpoints" / "step-00000010"
    flip_byte(newest / "model.safetensors", -5)
    loaded, _ = load(run)
    assert torch.equal(loaded.norm.weight, model.norm.weight * 0.5)
    assert "step 10 is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load(newest)


def test_half_written_checkpoint_is_not_loaded(run: Path, model: Transformer) -> None:
    """pitfall 27: no COMPLETE marker, no checkpoint."""
    (run / "checkpoints" / "step-00000010" / "COMPLETE").unlink()
    assert torch.equal(load(run)[0].norm.weight, model.norm.weight * 0.5)
    with pytest.raises(CheckpointError, match="COMPLETE"):
        load(run / "checkpoints" / "step-00000010")


def test_damaged_final_model_gives_way_to_a_checkpoint(
    run: Path, model: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Transformer(model.config).init_weights(4), None, run / "model")
    truncate(run / "model" / "model.safetensors")
    assert_close(dict(load(run)[0].state_dict()), dict(model.state_dict()), **EXACT)
    assert "using the checkpoint of step 10" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="damaged or was cut short"):
        load(run)


def test_a_pointer_of_git_lfs_is_told_from_damage(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 88\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="pointer of Git LFS.*git lfs pull"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.5, 0.999])
def test_truncated_weights_are_a_sentence(share: float, folder: Path) -> None:
    truncate(folder / "model.safetensors", share)
    with pytest.raises(CheckpointError, match="model.safetensors.*damaged or was cut short"):
        load(folder)


def test_header_with_a_flipped_bit_is_a_sentence(folder: Path) -> None:
    flip_byte(folder / "model.safetensors", 20)
    with pytest.raises(CheckpointError):
        load(folder)


def test_every_missing_or_extra_tensor_of_a_folder_is_named(folder: Path) -> None:
    """pitfall 32."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.7.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(error.value)
    assert "not part of this model: model.layers.7.mlp.up_proj.weight" in str(error.value)


def test_checkpoint_of_another_shape_is_named(run: Path, model: Transformer) -> None:
    """pitfall 32, in our own names."""
    config = model.config.model_copy(update={"ffn_dim": 32})
    files = {"model_config.json": config.model_dump_json()}
    Checkpointer(run / "checkpoints").save(20, dict(model.state_dict()), {"x": torch.zeros(1)}, {}, files)
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.gate_proj.weight is \[24, 16\], expected \[32, 16\]"):
        load(run)


def test_tokenizer_larger_than_the_model_is_refused(
    folder: Path, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """pitfall 9: vocabularies that disagree; spare rows in the model are fine (every other test here has them)."""
    larger = train_tokenizer(["abcdefgh " * 9 + "一二三四五六七八九十"], model.config.vocab_size + 1)
    assert larger.vocab_size > model.config.vocab_size > tokenizer.vocab_size
    larger.save(folder)
    sentence = f"tokenizer has {larger.vocab_size} ids.* only {model.config.vocab_size} rows"
    with pytest.raises(CheckpointError, match=sentence):
        load(folder)
    with pytest.raises(CheckpointError, match=sentence):
        save(model, larger, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pickled_weights_are_refused_and_the_named_command_converts_them(folder: Path, model: Transformer) -> None:
    """pitfall 42: a pickle runs code when it is opened; the command in the sentence runs none of it, and works."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[:3], names[3:])):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    with pytest.raises(CheckpointError, match="pickle.*run any code.*weights_only=True") as error:
        load(folder)
    command = shlex.split(str(error.value).split("beside them): ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert_close(dict(load(folder)[0].state_dict()), dict(model.state_dict()), **EXACT)


def test_a_pickle_that_runs_code_is_not_run_by_the_named_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "full_sft_768.pth"
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(CheckpointError, match="run any code") as error:
        load(file)
    command = shlex.split(str(error.value).split("beside them): ")[1])
    assert subprocess.run([sys.executable, *command[1:]], capture_output=True).returncode != 0
    assert not (tmp_path / "ran").exists()


def test_nothing_to_load_says_what_was_looked_for(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SproutError, match="no such folder.*run folder, a checkpoint or a Hugging Face folder"):
        load("Some/Model-0.6B")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SproutError, match=r"config.json.*model_config.json.*checkpoints/step-\*"):
        load(tmp_path / "nothing")
    with pytest.raises(SproutError, match="is a file"):
        load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights; looked for model.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json:1: not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "architectures is "),
        ("[" * 100_000, "config.json: nested deeper"),
    ],
)
def test_damaged_config_is_a_sentence_with_its_line(text: str, expected: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=expected):
        load(folder)


def test_a_byte_order_mark_before_the_config_is_no_fault(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-8-sig")
    load(folder)


def test_index_may_not_point_out_of_its_folder(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="must give a file of this folder"):
        load(folder)
