"""``sprout eval``: from a folder to its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sproutlm.errors import DataError, SproutError
from sproutlm.eval.questions import Question
from sproutlm.export.huggingface import save
from sproutlm.model import Transformer
from sproutlm.pipeline.evaluate import choose, evaluate, find_questions
from sproutlm.tokenizer import Tokenizer

QUESTIONS = [
    {"id": f"{kind}-{i}", "kind": kind, "language": "zh", "messages": [{"role": "user", "content": f"{i}?"}],
     "answer": "4", "check": "last_number", "options": []}
    for kind in ("fact", "sum")
    for i in range(6)
]  # fmt: skip


@pytest.fixture
def folder(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save(model, tokenizer, tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS), encoding="utf-8")
    return file


def test_every_figure_is_reported(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "held [out].txt"  # brackets are no markup in the table
    text.write_text("你好，世界！\n\nHello there, world.\n", encoding="utf-8")
    file = tmp_path / "report.json"
    report = evaluate(folder, questions=questions, text=text, json_file=file, say=lambda sentence: None)
    assert report.keys() >= {"model", "parameters", "bits_per_byte", "perplexity", "checked", "stop_rate"}
    assert report["validation"]["bytes"] == len("你好，世界！Hello there, world.".encode())
    assert 1 < report["bits_per_byte"] < 20 and report["checked"]["counts"] == {"fact": 6, "sum": 6}
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert len(stored.pop("replies")) == 12 and stored == report
    shown = capsys.readouterr().out
    assert "bits per byte" in shown and "[out].txt" in shown


def test_questions_are_limited_per_kind_and_by_kind(folder: Path, questions: Path) -> None:
    report = evaluate(folder, questions=questions, max_questions=2, kinds=["sum"], say=lambda sentence: None)
    assert report["checked"]["counts"] == {"sum": 2}
    assert report["bits_per_byte"] is None and report["validation"] is None


def test_a_limit_takes_questions_from_the_whole_file() -> None:
    asked = [Question(str(i), "fact", "zh", (), "4", "exact") for i in range(10)]
    assert [q.id for q in choose(asked, 5, None, "file")] == ["0", "2", "4", "6", "8"]
    with pytest.raises(DataError, match="no question of kind tales; its kinds are fact"):
        choose(asked, None, ["tales"], "file")


def test_nothing_to_evaluate_is_a_sentence(folder: Path) -> None:
    with pytest.raises(SproutError, match="nothing to evaluate.*--text FILE.*--questions FILE"):
        evaluate(folder, say=lambda sentence: None)


def test_the_world_of_the_run_is_found_and_asked_after_fine_tuning_only(folder: Path, questions: Path) -> None:
    run = folder.parent
    (run.parent / "world").mkdir()
    (run.parent / "world" / "questions.jsonl").write_bytes(questions.read_bytes())
    said: list[str] = []
    for stage in ("sft", "pretrain"):
        (run / "recipe.yaml").write_text(recipe(stage), encoding="utf-8")
        assert find_questions(run) == find_questions(folder) == run.parent / "world" / "questions.jsonl"
        if stage == "sft":
            assert evaluate(run, max_questions=1, say=said.append)["checked"]["counts"] == {"fact": 1, "sum": 1}
            assert any("asking the questions of" in sentence for sentence in said)
        else:
            with pytest.raises(SproutError, match="nothing to evaluate"):
                evaluate(run, say=said.append)
            assert any("only pretrained" in sentence for sentence in said)


def recipe(stage: str, **data: Any) -> str:
    fields = {
        "name": "x", "stage": stage, "init_from": "random", "model": {"dim": 32, "n_heads": 2, "max_seq_len": 96},
        "data": {"train": [{"path": "rows.jsonl"}], "seq_len": 64, **data}, "train": {"steps": 1, "batch_tokens": 128},
    }  # fmt: skip
    return json.dumps(fields)


def test_a_runs_own_validation_rows_are_measured(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The last rows of the training data, as the recipe in the run folder says, and no others."""
    from sproutlm.config.schema import SourceConfig
    from sproutlm.data.prepare import prepare
    from sproutlm.tokenizer import ChatTemplate

    texts = ["天地玄黄", "宇宙洪荒", "日月盈昃", "Hello there"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    run = folder.parent
    template = ChatTemplate.of(tokenizer)
    prepare([SourceConfig(path=str(rows))], tokenizer, template, run / "data" / "train", seq_len=64, say=lambda _: None)
    (run / "recipe.yaml").write_text(recipe("pretrain", validation={"rows": 2}), encoding="utf-8")
    report = evaluate(run, say=lambda sentence: None)
    assert report["validation"]["bytes"] == len("".join(texts[2:]).encode())
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[2:]), encoding="utf-8")
    by_file = evaluate(run, text=held, say=lambda sentence: None)
    assert report["bits_per_byte"] == pytest.approx(by_file["bits_per_byte"], rel=1e-5)


def test_validation_rows_that_are_gone_are_said(folder: Path, questions: Path) -> None:
    run = folder.parent
    (run / "recipe.yaml").write_text(recipe("pretrain", validation={"rows": 2}), encoding="utf-8")
    said: list[str] = []
    assert evaluate(run, questions=questions, max_questions=1, say=said.append)["bits_per_byte"] is None
    assert any("bits per byte is left out" in sentence for sentence in said)
