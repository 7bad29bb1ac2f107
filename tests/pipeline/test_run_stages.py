"""``sprout run``: stages in order, skipped when nothing they depend on has changed, continued when interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config.load import load_recipe
from sproutlm.config.schema import ExportStage
from sproutlm.errors import CheckFailed, Interrupted, RecipeError
from sproutlm.pipeline import run as run_module
from sproutlm.pipeline.run import Progress, run, stage_key

PIPELINE = """
name: house
run: out
seed: 5
stages:
  - {do: tokenizer, name: tokenizer, tokenizer: {train_on: text.jsonl, vocab_size: 300}}
  - do: train
    name: base
    recipe:
      data: {train: "parts/*.jsonl", seq_len: 32}
      tokenizer: stage:tokenizer
      model: {dim: 16, n_heads: 2, n_layers: 1, max_seq_len: 64}
      train: {steps: 2, batch_tokens: 64}
  - do: train
    name: more
    recipe:
      data: {train: text.jsonl, seq_len: 32}
      init_from: stage:base
      train: {steps: 2, batch_tokens: 64}
  - {do: eval, name: exam, model: "stage:more", require: {overall: 0.5}}
  - {do: export, name: final, model: "stage:more"}
"""

FIGURES: dict[str, dict[str, Any]] = {
    "base": {"compute": "float32", "bits_per_byte": 2.5, "loss": 3.0},
    "more": {"compute": "float32", "bits_per_byte": 2.0, "loss": 2.0},
    "exam": {"checked": {"overall": 0.75, "by_kind": {"fact": 0.7}, "counts": {"fact": 4}}, "stop_rate": 1.0},
}


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``stages()`` runs the pipeline and returns the names of the stages that were done; their work is imitated by a
    file in their folder, their figures are ``FIGURES``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for name in ("text.jsonl", "parts/a.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "house.yaml").write_text(PIPELINE)
    done: list[str] = []
    monkeypatch.setattr(run_module, "plot_stages", lambda pipeline, folder: None)

    def perform(stage: Any, folder: Path, run: Path, seed: int, say: Any) -> dict[str, Any]:
        done.append(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "made").write_text(f"{seed}")
        return FIGURES.get(stage.name, {})

    monkeypatch.setattr(run_module, "perform", perform)

    def run_it(*overrides: str, say: Callable[[str], None] = lambda sentence: None) -> list[str]:
        done.clear()
        run(load_recipe("house.yaml", overrides), say=say)
        return list(done)

    return run_it


ALL = ["tokenizer", "base", "more", "exam", "final"]


def test_all_stages_run_in_order_and_then_none(stages: Callable, tmp_path: Path) -> None:
    said: list[str] = []
    assert stages() == ALL
    assert stages(say=said.append) == []
    assert sum("done before, unchanged" in sentence for sentence in said) == len(ALL)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [s["name"] for s in report["stages"]] == ALL
    assert report["bits_per_byte"] == 2.5 and report["stop_rate"] == 1.0 and report["compute"] == "float32"
    assert report["checked"] == FIGURES["exam"]["checked"] and report["seconds"] >= 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("text.jsonl", ["tokenizer", "base", "more", "exam", "final"]),
        ("parts/a.jsonl", ["base", "more", "exam", "final"]),
        ("parts/b.jsonl", ["base", "more", "exam", "final"]),
        ("other.jsonl", []),
    ],
)
def test_a_changed_file_runs_again_what_depends_on_it(
    stages: Callable, tmp_path: Path, change: str, expected: list[str]
) -> None:
    """By content, also of files that a glob names; what the others made is not touched."""
    stages()
    (tmp_path / change).write_text('{"text": "b"}\n')
    assert stages() == expected
    assert stages() == []


def test_a_touched_file_with_the_same_content_changes_nothing(stages: Callable, tmp_path: Path) -> None:
    stages()
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    assert stages() == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("stages.base.recipe.optimizer.lr=0.5", ["base", "more", "exam", "final"]),
        ("stages.exam.require.overall=0.6", ["exam"]),
        ("seed=6", ALL),
    ],
)
def test_a_changed_setting_runs_again_what_depends_on_it(stages: Callable, setting: str, expected: list[str]) -> None:
    stages()
    assert stages(setting) == expected


def test_the_earlier_result_is_kept_beside_the_new_one(stages: Callable, tmp_path: Path) -> None:
    said: list[str] = []
    stages()
    stages("seed=6", say=said.append)
    assert (tmp_path / "out" / "base.replaced" / "made").read_text() == "5"
    assert (tmp_path / "out" / "base" / "made").read_text() == "6"
    assert any("its inputs changed: the earlier result is kept in base.replaced" in sentence for sentence in said)


def test_a_stage_whose_folder_is_gone_is_done_again(stages: Callable, tmp_path: Path) -> None:
    stages()
    (tmp_path / "out" / "final" / "made").unlink()
    (tmp_path / "out" / "final").rmdir()
    assert stages() == ["final"]


@pytest.mark.parametrize("end", [Interrupted("stopped"), KeyboardInterrupt(), RuntimeError("a fault")])
def test_an_interrupted_pipeline_goes_on_where_it_was(
    stages: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    """The stage that was interrupted continues in its own folder; those before it are not done again."""
    whole = run_module.perform

    def interrupted(stage: Any, folder: Path, *rest: Any) -> dict[str, Any]:
        if stage.name == "more":
            folder.mkdir(parents=True)
            (folder / "half").write_text("")
            raise end
        return whole(stage, folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "perform", interrupted)
        with pytest.raises(type(end)):
            stages()
    assert stages() == ["more", "exam", "final"]
    assert (tmp_path / "out" / "more" / "half").exists() and not (tmp_path / "out" / "more.replaced").exists()


def test_a_progress_file_cut_off_by_a_kill_only_costs_looking_again(stages: Callable, tmp_path: Path) -> None:
    stages()
    progress = tmp_path / "out" / "stages.json"
    progress.write_text(progress.read_text()[:100])
    assert stages() == ALL
    assert not list((tmp_path / "out").glob("*.replaced"))


def test_a_requirement_that_is_not_met_fails_the_check_after_everything_was_done(
    stages: Callable, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=r"exam: overall is 75.0%, required 90.0%; see .*report.json") as error:
        stages("stages.exam.require.overall=0.9")
    assert error.value.exit_code == 2
    assert (tmp_path / "out" / "final").is_dir() and (tmp_path / "out" / "report.json").is_file()
    with pytest.raises(CheckFailed):  # and it does not pass because it was done before
        stages("stages.exam.require.overall=0.9")


@pytest.mark.parametrize(
    ("require", "fails"),
    [
        ("{each_kind: 0.7}", False),
        ("{each_kind: 0.71}", True),
        ("{stop_rate: 1.0}", False),
        ("{overall: 0.75}", False),
        ("{overall: 0.76, stop_rate: 0.1}", True),
    ],
)
def test_each_requirement_is_compared_with_its_own_figure(stages: Callable, require: str, fails: bool) -> None:
    if fails:
        with pytest.raises(CheckFailed):
            stages(f"stages.exam.require={require}")
    else:
        stages(f"stages.exam.require={require}")


def test_the_control_is_reported_and_never_required(stages: Callable, tmp_path: Path) -> None:
    stages("stages.exam.control=true", "stages.exam.require.overall=0.99")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["control"]["overall"] == 0.75 and report["checked"] is None


def test_a_reference_to_no_stage_is_a_sentence(stages: Callable, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stage:bse names no earlier stage; the earlier ones are tokenizer, base"):
        stages("stages.more.recipe.init_from=stage:bse")
    stage = ExportStage(do="export", name="final", model="stage:nothing")
    with pytest.raises(RecipeError, match="stages.final: stage:nothing is not the name of an earlier stage"):
        stage_key(stage, Progress(tmp_path / "stages.json"), seed=1)


def test_real_stages_train_continue_and_export(finished: Path, sprout: Callable) -> None:
    """Nothing imitated: a tokenizer, a training run that uses it, an export; then a changed rate, then nothing."""
    (finished / "pipeline.yaml").write_text(
        """
name: whole
run: out
stages:
  - {do: tokenizer, name: words, tokenizer: {train_on: text.jsonl, vocab_size: 300}}
  - do: train
    name: base
    recipe:
      data: {train: text.jsonl, validation: {rows: 4}, seq_len: 32, workers: 1}
      tokenizer: stage:words
      model: {dim: 16, n_layers: 1, n_heads: 2, max_seq_len: 64}
      train: {steps: 3, batch_tokens: 128, compute: float32, device: cpu}
      sample: {prompts: []}
  - {do: export, name: final, model: "stage:base"}
"""
    )
    ran = sprout("run", "pipeline.yaml", "--json", "report.json")
    assert ran.code == 0, ran.err
    assert (finished / "out" / "final" / "config.json").is_file() and (finished / "out" / "loss.png").is_file()
    report = json.loads((finished / "report.json").read_text())
    assert report["bits_per_byte"] > 0 and report["stages"][1]["figures"]["steps"] == 3
    ran = sprout("run", "pipeline.yaml", "stages.base.recipe.optimizer.lr=0.02")
    assert ran.code == 0 and ran.out.count("done before, unchanged") == 1, "only the tokenizer stays"
    ran = sprout("run", "pipeline.yaml", "stages.base.recipe.optimizer.lr=0.02")
    assert ran.code == 0 and ran.out.count("done before, unchanged") == 3
