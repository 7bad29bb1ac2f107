"""A checkpoint or a Hugging Face folder with a fault is named with it, and a healthy one is left in peace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sproutlm.doctor.checkpoint import examine_checkpoint, examine_huggingface
from sproutlm.doctor.finding import Examination
from sproutlm.train.checkpoint import MARKER, Checkpointer, file_sha256, verify

Tensors = dict[str, torch.Tensor]


def edit_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def seal(folder: Path) -> None:
    """Write the checksums anew: the fault is what was saved, not what happened to it since."""
    marker = json.loads((folder / MARKER).read_text())
    for path in folder.iterdir():
        if path.name != MARKER:
            marker["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    marker["files"] = {name: entry for name, entry in marker["files"].items() if (folder / name).exists()}
    (folder / MARKER).write_text(json.dumps(marker))
    assert verify(folder) is None


def test_healthy_folders_raise_no_alarm(checkpoint: Path, hf: Path, assert_healthy: Any) -> None:
    assert_healthy(examine_checkpoint(checkpoint), examine_huggingface(hf))


# --- damage and unfinished saves -------------------------------------------------------------------------------------------


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def test_a_flipped_bit_is_found_by_its_checksum(checkpoint: Path, finding: Any) -> None:
    """pitfall 27"""
    flip_a_bit(checkpoint)
    found = finding(examine_checkpoint(checkpoint), "checksums")
    assert (found.status, found.pitfall) == ("fail", 27)
    assert "model.safetensors" in found.what


def test_half_a_checkpoint_is_named(checkpoint: Path, finding: Any) -> None:
    """pitfall 27"""
    (checkpoint / MARKER).unlink()
    assert "cut off" in finding(examine_checkpoint(checkpoint), "checksums").what


def test_what_a_cut_off_save_left_is_named(checkpoint: Path, finding: Any) -> None:
    """pitfall 27"""
    (checkpoint.parent / ".step-00000060.tmp").mkdir()
    (checkpoint.parent / "step-00000050").mkdir()
    found = examine_checkpoint(checkpoint)
    assert finding(found, "unfinished save").status == "warn"
    assert "step-00000050" in finding(found, "half a checkpoint").what


@pytest.mark.parametrize(
    ("named", "status"), [("step-00000099", "fail"), ("step-00000020", "warn"), ("step-00000040", "ok")]
)
def test_latest_must_name_the_newest_whole_checkpoint(named: str, status: str, checkpoint: Path, finding: Any) -> None:
    """pitfall 27"""
    (checkpoint.parent / "latest").write_text(named + "\n")
    found = finding(examine_checkpoint(checkpoint), "latest")
    assert (found.status, found.pitfall) == (status, 27)


def test_a_checkpoint_that_cannot_be_continued_exactly_is_named(checkpoint: Path, finding: Any) -> None:
    """pitfall 26: without optimizer state, or with the step of another."""
    (checkpoint / "trainer.json").write_text('{"state": {"step": 7}}')
    seal(checkpoint)
    assert finding(examine_checkpoint(checkpoint), "resuming").status == "fail"
    (checkpoint / "optimizer.safetensors").unlink()
    seal(checkpoint)
    found = finding(examine_checkpoint(checkpoint), "resuming")
    assert (found.status, found.pitfall) == ("warn", 26)
    assert "optimizer.safetensors" in found.what


# --- weights ------------------------------------------------------------------------------------------------------------------

DOWN = "layers.1.mlp.down_proj.weight"


def ones(tensors: Tensors) -> None:
    tensors.update({name: torch.ones_like(t) for name, t in tensors.items() if name.endswith("norm.weight")})


WEIGHTS: dict[str, tuple[Callable[[Tensors], Any], str, str, int, str]] = {
    # name: (change, check, status, pitfall, what the sentence names)
    "NaN": (lambda t: t[DOWN].view(-1)[3].fill_(float("nan")), "finite weights", "fail", 33, f"{DOWN} (1 of"),
    "infinite": (lambda t: t["norm.weight"].fill_(float("inf")), "finite weights", "fail", 33, "norm.weight (16"),
    "zero matrix": (lambda t: t[DOWN].zero_(), "zero matrices", "fail", 16, "never trained"),
    "untouched norms": (ones, "untouched norms", "warn", 29, "exactly 1"),
    "bf16 masters": (lambda t: t.update({DOWN: t[DOWN].bfloat16()}), "float32 masters", "fail", 29, DOWN),
    "missing": (lambda t: t.pop(DOWN), "tensors", "fail", 32, DOWN),
    "extra": (lambda t: t.update(stray=torch.zeros(2, 2)), "tensors", "fail", 32, "stray"),
    "misshapen": (lambda t: t.update({DOWN: t[DOWN][:3].clone()}), "tensors", "fail", 32, DOWN),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_fault_of_the_weights_is_named(name: str, checkpoint: Path, finding: Any) -> None:
    """pitfalls 16, 29, 32, 33, as a checkpoint can hold them under a good checksum."""
    change, check, status, pitfall, words = WEIGHTS[name]
    edit_weights(checkpoint, change)
    seal(checkpoint)
    found = finding(examine_checkpoint(checkpoint), check)
    assert (found.status, found.pitfall) == (status, pitfall)
    assert words in found.what and found.cure


def test_a_tokenizer_with_more_ids_than_rows_is_named(checkpoint: Path, finding: Any) -> None:
    """pitfall 9: the embedding is one row short."""
    config = json.loads((checkpoint / "model_config.json").read_text())
    config["vocab_size"] -= 1
    (checkpoint / "model_config.json").write_text(json.dumps(config))
    edit_weights(checkpoint, lambda t: t.update({"embed_tokens.weight": t["embed_tokens.weight"][:-1].clone()}))
    seal(checkpoint)
    found = finding(examine_checkpoint(checkpoint), "vocabulary")
    assert (found.status, found.pitfall) == ("fail", 9)


# --- Hugging Face folders ----------------------------------------------------------------------------------------------------


def examined(hf: Path, name: str, **changes: Any) -> Examination:
    values = json.loads((hf / name).read_text())
    (hf / name).write_text(json.dumps({**values, **changes}))
    return examine_huggingface(hf)


@pytest.mark.parametrize("ends", [None, 0, [0, 1]])
def test_generation_must_stop_where_training_did(ends: Any, hf: Path, finding: Any) -> None:
    """pitfall 1: no end at all, or the end of documents only."""
    examined(hf, "config.json", eos_token_id=None)
    found = finding(examined(hf, "generation_config.json", eos_token_id=ends), "end of generation")
    assert (found.status, found.pitfall) == ("fail", 1)
    assert "<|im_end|>" in found.what


def test_an_end_that_stands_in_config_json_counts(hf: Path, tokenizer: Any, finding: Any) -> None:
    (hf / "generation_config.json").unlink()
    found = finding(examined(hf, "config.json", eos_token_id=tokenizer.token_id("<|im_end|>")), "end of generation")
    assert found.status == "ok" and "config.json" in found.what


def test_a_head_that_is_called_tied_and_is_not_is_named(hf: Path, finding: Any) -> None:
    """pitfall 32"""
    edit_weights(hf, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    found = finding(examine_huggingface(hf), "tensors")
    assert found.status == "fail" and "tie_word_embeddings" in found.what


def test_missing_and_broken_files_are_findings(hf: Path, finding: Any) -> None:
    """pitfall 32"""
    (hf / "tokenizer.json").unlink()
    assert finding(examine_huggingface(hf), "tokenizer").status == "warn"
    (hf / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:-50])
    assert finding(examine_huggingface(hf), "tensors").status == "fail"
    (hf / "config.json").write_text("{}")
    assert finding(examine_huggingface(hf), "config").status == "fail"


def test_pickled_weights_are_named_and_not_opened(hf: Path, finding: Any) -> None:
    """pitfall 42"""
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    found = finding(examine_huggingface(hf), "tensors")
    assert found.status == "fail" and "pickle" in found.what


def test_latest_of_our_own_saver_is_what_the_doctor_expects(checkpoint: Path) -> None:
    assert (checkpoint.parent / "latest").read_text().strip() == checkpoint.name
    assert Checkpointer(checkpoint.parent).steps()[-1] == 40
