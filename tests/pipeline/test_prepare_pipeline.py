"""What a run needs is built once, said, and reused; held-out rows stay out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sproutlm.config.load import load_recipe
from sproutlm.data.encode import Encoder
from sproutlm.errors import DataError, RecipeError
from sproutlm.pipeline.prepare import drop_last, loader_of, prepare, prepare_data, validation_of
from sproutlm.pipeline.train import train

ROWS = [{"text": f"the moon is bright, verse {i}"} for i in range(40)]
HELD_OUT = [{"text": f"鑫鑫鑫鑫鑫鑫 {i}"} for i in range(10)]


@pytest.fixture
def project(tmp_path: Path):
    """``project(**sections)``: a loaded recipe over 40 rows and 10 to be held out; sections are merged into it."""

    def write(name: str, rows: list) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return name

    write("rows.jsonl", ROWS + HELD_OUT)

    def load(**sections):
        fields = {
            "name": "small",
            "run": "run",
            "data": {"train": ["rows.jsonl"], "validation": {"rows": 10}, "seq_len": 32},
            "tokenizer": {"vocab_size": 380},
            "model": {"dim": 16, "n_layers": 1, "n_heads": 1, "max_seq_len": 32},
            "train": {"steps": 2, "batch_tokens": 128, "compute": "float32", "device": "cpu"},
            "sample": {"prompts": []},
        }
        for name, values in sections.items():
            fields[name] = {**fields[name], **values} if isinstance(values, dict) else values
        (tmp_path / "recipe.yaml").write_text(json.dumps(fields))
        return load_recipe(tmp_path / "recipe.yaml")

    load.write, load.folder = write, tmp_path
    return load


def built(loaded):
    said: list[str] = []
    return prepare(loaded.recipe, loaded.run_dir, said.append), said


def texts(dataset, tokenizer) -> list[str]:
    return [tokenizer.decode(dataset.document(i)[0]) for i in range(dataset.n_documents)]


def test_rows_held_out_are_the_last_ones_and_are_not_trained(project):
    made, _ = built(project())
    assert texts(made.train, made.tokenizer) == [row["text"] for row in ROWS]
    assert texts(made.validation, made.tokenizer) == [row["text"] for row in HELD_OUT]
    assert made.train.fingerprint != made.validation.fingerprint


def test_the_tokenizer_does_not_see_rows_held_out(project):
    made, _ = built(project())
    without = project.write("other.jsonl", ROWS + [{"text": f"other {i}"} for i in range(10)])
    other, _ = built(project(run="other", data={"train": [without]}))
    assert made.tokenizer.fingerprint == other.tokenizer.fingerprint
    seen, _ = built(project(run="seen", data={"validation": None}))
    assert seen.tokenizer.fingerprint != made.tokenizer.fingerprint


def test_a_second_start_tokenises_nothing_and_says_so(project, monkeypatch):
    """Pitfall 12."""
    first, said = built(project())
    assert any("training a tokenizer" in line for line in said) and not any("reusing" in line for line in said)
    monkeypatch.setattr(Encoder, "chunk", lambda *_: pytest.fail("a row was tokenised again"))
    second, said = built(project())
    assert any("reusing" in line and "50 documents" in line for line in said)
    assert not any("training a tokenizer" in line for line in said)
    assert first.train.fingerprint == second.train.fingerprint


def test_holding_out_every_row_is_refused(project):
    with pytest.raises(DataError, match="held out|hold out"):
        built(project(data={"validation": {"rows": 50}}, tokenizer={"train_on": ["rows.jsonl"]}))


def test_validation_from_its_own_source(project):
    project.write("validation.jsonl", HELD_OUT)
    project.write("train.jsonl", ROWS)
    made, _ = built(project(data={"train": ["train.jsonl"], "validation": ["validation.jsonl"]}))
    assert texts(made.validation, made.tokenizer) == [row["text"] for row in HELD_OUT]
    assert made.train.n_documents == 40


def test_shards_go_to_the_cache_folder_that_is_named(project):
    built(project(data={"cache": "elsewhere"}))
    assert (project.folder / "elsewhere" / "train" / "manifest.json").is_file()
    assert not (project.folder / "run" / "data").exists()


def test_the_loader_follows_the_recipe(project):
    loaded = project(data={"document_mask": False, "packing": "stream"}, train={"batch_tokens": 96})
    made, _ = built(loaded)
    loader = loader_of(loaded.recipe, made.train, made.tokenizer.pad_id)
    batch = loader.batch(0)
    assert loader.rows_per_step == len(batch.tokens) == 3
    assert batch.document_ids is None and batch.positions[0].tolist() == list(range(32))
    assert loader.pad_id not in (made.tokenizer.eos_id, made.tokenizer.unk_id)


def test_a_vocabulary_too_small_is_refused_before_the_first_step(project):
    """Pitfall 9: ids beyond the embedding would read other memory, or end a run in its middle."""
    with pytest.raises(RecipeError, match="model.vocab_size=50"):
        train(project(model={"vocab_size": 50}), say=lambda line: None)
    assert not (project.folder / "run" / "metrics.jsonl").exists()
    assert not list((project.folder / "run").glob("checkpoints/step-*"))


def test_data_prepare_reports_what_became_of_every_row(project):
    """Pitfall 13."""
    project.write("rows.jsonl", [*ROWS, {"text": ""}, {"txt": "a"}, *HELD_OUT])
    figures = prepare_data(project(data={"on_bad_row": "skip"}), say=lambda line: None)
    counts = figures["counts"]
    assert counts["rows_in"] == 52
    assert counts["rows_in"] == counts["records_out"] + sum(counts["dropped"].values())
    assert figures["train"]["documents"] == 40 and figures["validation"]["documents"] == 10


def test_validation_rows_of_a_finished_run_are_those_it_was_trained_with(project):
    loaded = project()
    train(loaded, say=lambda line: None)
    loader, tokenizer = validation_of(loaded.run_dir)
    assert texts(loader.dataset, tokenizer) == [row["text"] for row in HELD_OUT]
    loaded = project(run="bare", data={"validation": None})
    train(loaded, say=lambda line: None)
    assert validation_of(loaded.run_dir) is None


def test_drop_last_streams():
    """Never more rows are held than are held back."""
    source = iter(range(1000))
    kept = drop_last(source, 3)
    assert next(kept) == 0 and next(source) == 4
    assert list(drop_last(range(5), 5)) == [] and list(drop_last(range(5), 0)) == list(range(5))


@pytest.mark.parametrize("name", ["synth:huge/pretrain", "synth:tiny/nothing"])
def test_unknown_parts_of_the_embedded_world_are_named(project, name, monkeypatch):
    def fake_world(folder, seed, size):
        folder.mkdir(parents=True)
        (folder / "world.json").write_text("{}")
        (folder / "pretrain.jsonl").write_text("")

    monkeypatch.setattr("sproutlm.data.synth.synthesize", fake_world)
    with pytest.raises(DataError, match="huge|has no 'nothing'; it has pretrain"):
        built(project(data={"train": [name]}))


def test_a_reused_tokenizer_is_said_and_never_one_of_another_size(project, tmp_path: Path) -> None:
    """The text may be too small for vocab_size: what was asked for counts, not what came of it."""
    recipe = project(tokenizer={"vocab_size": 5000}).recipe
    first = prepare(recipe, tmp_path / "run", lambda sentence: None)
    assert first.tokenizer.vocab_size < 5000
    said: list[str] = []
    again = prepare(recipe, tmp_path / "run", said.append)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert any("reusing the tokenizer" in sentence for sentence in said)
    with pytest.raises(DataError, match="trained for tokenizer.vocab_size=5000, the recipe now asks for 400"):
        prepare(project(tokenizer={"vocab_size": 400}).recipe, tmp_path / "run", said.append)
    (tmp_path / "other.jsonl").write_text('{"text": "other words"}\n' * 20)
    said.clear()
    prepare(
        project(data={"train": ["other.jsonl"]}, tokenizer={"vocab_size": 5000}).recipe, tmp_path / "run", said.append
    )
    assert any("it was trained on" in sentence and "rows.jsonl" in sentence for sentence in said)


def test_pretraining_on_conversations_says_once_that_only_answers_are_trained(project):
    """pitfall 14: a person who pretrains on instruction rows learns that most of their tokens are no targets."""
    rows = [{"instruction": f"what is {i} and {i}?", "output": f"{2 * i}"} for i in range(40)]
    project.write("chats.jsonl", rows)
    made, said = built(project(data={"train": ["chats.jsonl"]}))
    notes = [line for line in said if "only the answers are trained" in line]
    share = made.train.manifest["trained_tokens"] / made.train.manifest["tokens"]
    assert len(notes) == 1 and "40 conversations" in notes[0] and f"{share:.1%} of all tokens" in notes[0]
    _, again = built(project(data={"train": ["chats.jsonl"]}))
    assert notes == [line for line in again if "only the answers are trained" in line]  # reused shards say it, too
    for sections in ({}, {"data": {"train": ["chats.jsonl"]}, "stage": "sft", "init_from": "random"}):
        _, said = built(project(**sections, run=f"other-{len(sections)}"))
        assert not any("only the answers are trained" in line for line in said)
