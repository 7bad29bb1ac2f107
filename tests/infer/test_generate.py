"""One-off generation: streamed text, raw or as a turn, with its figures."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from sproutlm.errors import SproutError
from sproutlm.infer.generate import begin_id, generate, run_of, stage_of
from sproutlm.infer.sampling import SamplingParams
from sproutlm.tokenizer import Tokenizer

PARAMS = SamplingParams(temperature=0, max_tokens=8)


def run_folder(model_folder: Path, root: Path, stage: str) -> Path:
    run = root / stage
    shutil.copytree(model_folder, run / "model")
    (run / "recipe.yaml").write_text(f"name: x\nstage: {stage}\n", encoding="utf-8")
    return run


def test_text_is_streamed_and_reported(model_folder: Path, tmp_path: Path) -> None:
    output, file = io.StringIO(), tmp_path / "out.json"
    report = generate(model_folder, "你好", PARAMS, output=output, json_file=file)
    assert output.getvalue() == report["text"] + "\n"
    assert (report["tokens"], report["finish_reason"], report["chat"]) == (8, "length", False)
    assert json.loads(file.read_text(encoding="utf-8")) == report


def test_a_raw_prompt_follows_the_token_that_begins_a_text(model_folder: Path, tokenizer: Tokenizer) -> None:
    report = generate(model_folder, "你好", PARAMS, output=io.StringIO())
    assert report["prompt_tokens"] == 1 + len(tokenizer.encode("你好"))
    assert generate(model_folder, "", PARAMS, output=io.StringIO())["prompt_tokens"] == 1
    assert begin_id(tokenizer) == tokenizer.eos_id


def test_the_template_is_used_where_the_run_was_fine_tuned(model_folder: Path, tmp_path: Path) -> None:
    sft, pretrain = run_folder(model_folder, tmp_path, "sft"), run_folder(model_folder, tmp_path, "pretrain")
    for path, chat in ((sft, True), (sft / "model", True), (pretrain, False), (model_folder, False)):
        assert generate(path, "hi", PARAMS, output=io.StringIO())["chat"] is chat
    assert generate(sft, "hi", PARAMS, as_chat=False, output=io.StringIO())["chat"] is False
    assert generate(pretrain, "hi", PARAMS, as_chat=True, output=io.StringIO())["chat"] is True


def test_a_checkpoint_belongs_to_its_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "recipe.yaml").write_text("stage: sft\n", encoding="utf-8")
    assert run_of(checkpoint) == checkpoint and stage_of(checkpoint) == "sft"
    (tmp_path / "run" / "recipe.yaml").write_text("stage: pretrain\n", encoding="utf-8")
    assert run_of(checkpoint) == tmp_path / "run" == run_of(tmp_path / "run")
    assert run_of(tmp_path) is None and stage_of(tmp_path) is None


def test_a_system_prompt_without_a_conversation_is_refused(model_folder: Path) -> None:
    with pytest.raises(SproutError, match="system prompt needs a conversation"):
        generate(model_folder, "hi", PARAMS, system="Be kind", output=io.StringIO())


def test_a_seed_gives_the_same_text(model_folder: Path) -> None:
    texts = [
        generate(model_folder, "hi", temperature=1.0, max_tokens=20, seed=seed, output=io.StringIO())["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
