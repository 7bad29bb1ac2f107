"""Hugging Face folders: whole or not at all, bit for bit, stopping where training did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from sproutlm.errors import CheckpointError, SproutError
from sproutlm.export import export_run, import_folder, load, load_state, read, save
from sproutlm.export.huggingface import write_folder
from sproutlm.export.weights import INDEX
from sproutlm.model import Transformer
from sproutlm.tokenizer.template import ChatTemplate
from sproutlm.tokenizer.tokenizer import Tokenizer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}


def test_saved_folder_reads_back_bit_for_bit(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(model, tokenizer, tmp_path / "out")
    config, state, again = read(tmp_path / "out")
    assert config == model.config
    assert_close(state, dict(model.state_dict()), **EXACT)
    assert again is not None and again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    loaded, _ = load(tmp_path / "out")
    x = torch.arange(9)[None]
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt"}


def test_saving_twice_gives_the_same_bytes(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(model, tokenizer, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_types_are_written_when_asked_for(dtype: str, model: Transformer, tmp_path: Path) -> None:
    save(model, None, tmp_path / "out", dtype=dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    kind = getattr(torch, dtype)
    for name, tensor in read(tmp_path / "out")[1].items():
        assert torch.equal(tensor, model.state_dict()[name].to(kind)), name
    _, state, _ = load_state(tmp_path / "out")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_unknown_type_is_refused_and_leaves_nothing(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(SproutError, match="int4.*float32, bfloat16, float16"):
        save(model, None, tmp_path / "out", dtype="int4")
    assert list(tmp_path.iterdir()) == []


def test_sharded_folder_is_read_here_and_by_transformers(model: Transformer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    write_folder(model.config, model.state_dict(), None, out, shard_bytes=8000)
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) >= 3 and not (out / "model.safetensors").exists()
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert_close(read(out)[1], dict(model.state_dict()), **EXACT)
    theirs, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    x = torch.arange(9)[None]
    assert_close(theirs(x).logits, model(x), rtol=1.3e-6, atol=1e-5)

    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"not there: {shards[1].name}"):
        read(out)


def test_generation_stops_where_training_did(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """pitfall 43: generation_config.json names every stop token; a model that writes <|im_end|> ends there."""
    from transformers import AutoModelForCausalLM

    im_end = tokenizer.token_id("<|im_end|>")
    talker = Transformer(model.config).init_weights(0)
    with torch.no_grad():  # channel 0 is large whatever the input, and only <|im_end|> listens to it
        talker.embed_tokens.weight[:, 0] = 10.0
        talker.lm_head.weight.zero_()
        talker.lm_head.weight[im_end, 0] = 1.0
    save(talker, tokenizer, tmp_path / "out")

    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    template = ChatTemplate(tokenizer.chat_template or "", tokenizer)
    assert set(written["eos_token_id"]) == set(tokenizer.stop_ids) | set(template.stop_ids)
    assert {im_end, tokenizer.eos_id} <= set(written["eos_token_id"])
    assert written["pad_token_id"] == tokenizer.pad_id and tokenizer.pad_id not in written["eos_token_id"]
    hf = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (hf["eos_token_id"], hf["pad_token_id"]) == (written["eos_token_id"], written["pad_token_id"])

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = torch.tensor([tokenizer.encode("the river")])
    generated = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    assert generated[0, prompt.shape[1] :].tolist() == [im_end]


def test_tokenizer_of_the_folder_gives_equal_ids_in_transformers(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    save(model, tokenizer, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    for text in ("the river，处处闻啼鸟。", "a\r\nb  c\n\n", "🌱 ok"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_failed_save_leaves_the_earlier_export_as_it_was(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full in the middle of a save: the old folder stays whole, nothing is left beside it."""
    out = tmp_path / "out"
    save(model, tokenizer, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sproutlm.export.weights.save_file", full)
    with pytest.raises(SproutError, match="No space left on device.*untouched"):
        save(model, tokenizer, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_export_that_cannot_take_its_place_gives_the_old_one_back(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "out", os.replace
    save(model, None, out)

    def refuse_new(source: Path, target: Path) -> None:
        if ".writing-" in str(source):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr("sproutlm.export.huggingface.os.replace", refuse_new)
    with pytest.raises(SproutError, match="Permission denied.*untouched"):
        save(Transformer(model.config).init_weights(0), None, out)
    assert_close(read(out)[1], dict(model.state_dict()), **EXACT)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_new_export_replaces_the_old_one_entirely(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(model.config, model.state_dict(), tokenizer, out, shard_bytes=8000)
    save(model, None, out)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/x", "pytorch_model.bin"])
def test_folder_with_other_files_is_never_replaced(name: str, model: Transformer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(model, None, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("precious")
    with pytest.raises(SproutError, match="not empty and no earlier export.*nothing was written"):
        save(model, None, out)
    assert (out / name).read_text() == "precious"


def test_empty_folder_is_accepted_and_a_file_is_not(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(model, None, tmp_path / "empty")
    assert_close(read(tmp_path / "empty")[1], dict(model.state_dict()), **EXACT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SproutError, match="is a file"):
        save(model, None, tmp_path / "file")


AS_ANOTHER_USER = """
import os, sys
import sproutlm.export
from sproutlm.config.model import ModelConfig
from sproutlm.errors import SproutError
from sproutlm.export import save
from sproutlm.model import Transformer

model = Transformer(ModelConfig(vocab_size=8, dim=8, n_layers=1, n_heads=1, ffn_dim=8)).init_weights(0)
save(model, None, sys.argv[1] + "/warm")  # imports all it needs while that is still allowed
os.chmod(sys.argv[1], 0o555)
if os.getuid() == 0:
    os.setuid(65534)
try:
    save(model, None, sys.argv[1] + "/out")
except SproutError as error:
    print(error)
"""


def test_folder_without_permission_is_a_sentence() -> None:
    """Root may write anywhere, so the process gives up its user id first."""
    locked = tempfile.mkdtemp()  # not tmp_path: another user could not even see that
    try:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
        command = [sys.executable, "-c", AS_ANOTHER_USER, locked]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert f"{locked}/out: could not be written (Permission denied)" in done.stdout, done.stderr
    finally:
        os.chmod(locked, 0o755)
        shutil.rmtree(locked)


def test_export_of_a_run_says_what_it_wrote(
    run: Path, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    report = export_run(run, tmp_path / "out", dtype="bfloat16")
    assert report["step"] == 10 and report["architecture"] == "Qwen3ForCausalLM"
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["files"] == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert set(report["stop_ids"]) >= set(tokenizer.stop_ids)
    assert json.loads(json.dumps(report)) == report
    export_run(run, tmp_path / "out")  # an earlier export is replaced
    assert_close(read(tmp_path / "out")[1], dict(model.state_dict()), **EXACT)
    with pytest.raises(SproutError, match="not empty and no earlier export"):
        export_run(run, run)


def test_imported_folder_works_like_a_run(folder: Path, model: Transformer, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (folder / "modeling_mine.py").write_text("raise SystemExit")
    report = import_folder(folder, tmp_path / "imported")
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    copied = {p.name for p in (tmp_path / "imported" / "model").iterdir()}
    assert copied == {p.name for p in folder.iterdir()} - {"pytorch_model.bin", "modeling_mine.py"}
    for name in copied:
        assert (tmp_path / "imported" / "model" / name).read_bytes() == (folder / name).read_bytes()
    note = json.loads((tmp_path / "imported" / "import.json").read_text())
    assert note["architecture"] == "Qwen3ForCausalLM" and note["sha256"].keys() == {"model.safetensors"}
    config, state, tok = load_state(tmp_path / "imported")
    assert config == model.config and tok is not None
    assert_close(state, dict(model.state_dict()), **EXACT)
    export_run(tmp_path / "imported", tmp_path / "again")
    assert_close(read(tmp_path / "again")[1], dict(model.state_dict()), **EXACT)
    import_folder(folder, tmp_path / "imported")  # an earlier import is replaced


def test_folder_that_cannot_be_read_is_not_imported(folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="damaged or was cut short"):
        import_folder(folder, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
