"""Recipes that are wrong: every problem at once, each at its line, with the nearest name and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sproutlm.config import load_recipe
from sproutlm.errors import RecipeError

RIGHT = """\
name: one
data:
  train: rows.jsonl
model: {dim: 64, n_layers: 1}
train: {steps: 3}
"""


def problems(folder: Path, text: str, *overrides: str, environ: dict[str, str] | None = None) -> list[str]:
    """The problems of a recipe, with its folder left out of the labels."""
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, cwd=folder, environ=environ)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_unknown_keys_wrong_types_and_impossible_combinations_are_all_reported_at_once(tmp_path: Path) -> None:
    text = """\
name: one
sead: 3
data:
  train: rows.jsonl
  seq_len: 100
  paking: stream
model:
  dim: 96
  n_heads: 4
  n_kv_heads: 3
  n_layer: 2
train:
  steps: many
  batch_tokens: 1024
stage: sft
optimizer:
  lr: fast
"""
    assert problems(tmp_path, text) == [
        "r.yaml:2: sead: unknown key (got 3); did you mean 'seed'?",
        "r.yaml:6: data.paking: unknown key (got 'stream'); did you mean 'packing'?",
        "r.yaml:10: model.n_kv_heads: n_heads=4 is not a multiple of n_kv_heads=3; choose one of 1, 2, 4",
        "r.yaml:11: model.n_layer: unknown key (got 2); did you mean 'n_layers'?",
        "r.yaml:13: train.steps: must be a whole number (got 'many')",
        "r.yaml:14: train.batch_tokens: 1024 is not a multiple of data.seq_len=100; the nearest is 1000",
        "r.yaml:15: stage: sft needs init_from: the run or Hugging Face folder to start from (or 'random', on purpose)",
        "r.yaml:17: optimizer.lr: must be a number (got 'fast')",
    ]


def test_combinations_inside_and_between_sections_are_reported_together(tmp_path: Path) -> None:
    text = RIGHT.replace("{dim: 64, n_layers: 1}", "{dim: 64, n_heads: 3, max_seq_len: 16}") + "run: ''\n"
    found = problems(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == ["data.seq_len", "model.dim", "run"]
    assert "dim=64 is not a multiple of n_heads=3" in found[1]


def test_a_negative_z_loss_or_one_for_an_objective_that_knows_none_is_a_sentence(tmp_path: Path) -> None:
    found = problems(tmp_path, RIGHT, "train.z_loss=-0.0001")
    assert len(found) == 1 and "train.z_loss: must be at least 0 (got -0.0001)" in found[0]
    found = problems(tmp_path, RIGHT.replace("steps: 3", "steps: 3, z_loss: 1e-4") + "objective: mine:loss\n")
    assert len(found) == 1 and "only next_token knows of it, and objective is mine:loss" in found[0]


def test_a_misspelt_key_is_not_reported_a_second_time_as_missing(tmp_path: Path) -> None:
    assert problems(tmp_path, RIGHT.replace("steps", "stepz")) == [
        "r.yaml:5: train.stepz: unknown key (got 3); did you mean 'steps'?"
    ]
    assert len(problems(tmp_path, RIGHT.replace("data:", "dota:"))) == 1
    assert len(problems(tmp_path, RIGHT.replace("jsonl\n", "jsonl\n  validation: {rowz: 4}\n"))) == 1


def test_what_follows_from_a_reported_problem_is_not_reported(tmp_path: Path) -> None:
    """`steps: many` is one mistake; that then none of steps, tokens and epochs is given is not another."""
    assert problems(tmp_path, RIGHT.replace("steps: 3", "steps: many")) == [
        "r.yaml:5: train.steps: must be a whole number (got 'many')"
    ]


def test_the_value_under_a_misspelt_key_is_checked_too(tmp_path: Path) -> None:
    assert problems(tmp_path, RIGHT.replace("steps: 3", "stepz: many")) == [
        "r.yaml:5: train.stepz: unknown key (got 'many'); did you mean 'steps'?",
        "r.yaml:5: train.stepz: must be a whole number (got 'many')",
    ]


def test_missing_sections_are_named_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: x\nmodel: {dim: 64, n_heads: 3}\nseed: -1\n")
    assert found == [
        "r.yaml:1: data: missing; it is required",
        "r.yaml:1: train: missing; it is required",
        "r.yaml:2: model.dim: dim=64 is not a multiple of n_heads=3; change one of them, or give head_dim",
        "r.yaml:3: seed: must be at least 0 (got -1)",
    ]


def test_a_key_of_another_section_is_shown_its_section(tmp_path: Path) -> None:
    assert problems(tmp_path, RIGHT + "momentum_warmup: 0.1\n") == [
        "r.yaml:6: momentum_warmup: unknown key (got 0.1); did you mean 'optimizer.momentum_warmup'?"
    ]


def test_a_key_like_no_other_is_shown_what_the_section_knows(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, RIGHT + "schedule: {zzzz: 1}\n")
    assert problem == "r.yaml:6: schedule.zzzz: unknown key (got 1); known here: decay, final, name, warmup"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: true", "seed: must be a number (got true)"),
        ("seed: 1.5", "seed: must be a whole number (got 1.5)"),
        ("seed: [1]", "seed: must be a whole number (got a list of 1)"),
        ("stage: sftt", "stage: must be one of pretrain, sft (got 'sftt'); did you mean 'sft'?"),
        ("optimizer:", "optimizer: must be a section of 'key: value' lines (got nothing); fill it, or remove it"),
        ("optimizer: adamw", "optimizer: must be a section of 'key: value' lines (got 'adamw')"),
        ("optimizer: {lr: 0}", "optimizer.lr: must be greater than 0 (got 0)"),
        ("optimizer: {lr: .inf}", "optimizer.lr: must be a number (got inf)"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas.1: missing; it is required"),
        ("sample: {prompts: [1]}", "sample.prompts.0: must be text (got 1); put it in quotes"),
        ("sample: {prompts: hello}", "sample.prompts: must be a list (got 'hello')"),
        ("objective: 3", "objective: must be text (got 3); put it in quotes"),
    ],
)
def test_wrong_values_are_said_in_plain_words(line: str, expected: str, tmp_path: Path) -> None:
    assert problems(tmp_path, RIGHT + line + "\n") == [f"r.yaml:6: {expected}"]


def test_names_must_do_as_folders(tmp_path: Path) -> None:
    assert problems(tmp_path, RIGHT.replace("name: one", "name: ../up")) == [
        "r.yaml:1: name: must be letters, digits, '.', '_' or '-' only (got '../up')"
    ]


def test_sources_in_a_list_are_marked_at_their_own_line(tmp_path: Path) -> None:
    text = RIGHT.replace(
        "train: rows.jsonl", "train:\n    - a.txt\n    - path: b.txt\n      repeat: 0\n      colums: {}"
    )
    assert problems(tmp_path, text) == [
        "r.yaml:6: data.train.1.repeat: must be at least 1 (got 0)",
        "r.yaml:7: data.train.1.colums: unknown key (got a section with nothing in it); did you mean 'columns'?",
    ]


def test_missing_variables_are_all_named_with_their_lines(tmp_path: Path) -> None:
    text = (
        RIGHT.replace("rows.jsonl", "${CORPUS}/x").replace("steps: 3", "steps: '${STEPS}'")
        + "objective: '${BAD NAME}'\n"
    )
    found = problems(tmp_path, text, environ={})
    assert [line.split(": ")[:2] for line in found] == [
        ["r.yaml:3", "data.train.0.path"],
        ["r.yaml:5", "train.steps"],
        ["r.yaml:6", "objective"],
    ]
    assert "the variable CORPUS is not set" in found[0] and "${CORPUS:-default}" in found[0]
    assert "is no variable" in found[2]


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.step=5", "train.step: unknown key (got 5); did you mean 'steps'?"),
        ("train.steps=many", "train.steps: must be a whole number (got 'many')"),
        ("oops", "not of the form key=value, such as train.steps=500"),
        ("=5", "not of the form key=value, such as train.steps=500"),
        ("data.train.4.path=x", "data.train: has no item '4'; there are 1, counted from 0"),
        ("seed.x=1", "seed: is a single value, so it has no 'x' below it"),
        ("data.seq_len=1024", "data.seq_len: 1024 exceeds model.max_seq_len=512; lower one or raise the other"),
        ("run=", None),
    ],
)
def test_overrides_are_checked_like_the_file_and_located_by_themselves(
    override: str, expected: str | None, tmp_path: Path
) -> None:
    text = RIGHT + "seed: 2\n"
    if expected is None:
        (tmp_path / "r.yaml").write_text(text)
        assert load_recipe(tmp_path / "r.yaml", [override]).recipe.run is None
    else:
        assert problems(tmp_path, text, override)[-1] == f"command line: {override}: {expected}"


def test_problems_of_the_file_and_of_the_command_line_come_together(tmp_path: Path) -> None:
    found = problems(tmp_path, RIGHT + "sead: 1\n", "optimizr.lr=1", "train.steps=[")
    assert [line.split(": ")[0] for line in found] == ["r.yaml:6", "command line", "command line"]


def test_a_combination_is_marked_on_the_command_line_when_one_half_was_given_there(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, RIGHT, "model.max_seq_len=64")
    assert found.startswith("command line: model.max_seq_len=64: data.seq_len: 256 exceeds")


# --- pipelines ----------------------------------------------------------------------------------------------------------

STAGES = """\
name: all
stages:
  - do: synth
    name: world
    sise: tiny
  - do: train
    name: first
    recipe:
      data: {train: "stage:wrld/pretrain.jsonl"}
      model:
        dim: 64
        n_layer: 2
      train: {}
      run: elsewhere
  - do: traine
    name: second
  - name: third
  - do: export
    name: first
    model: stage:second
"""


def test_every_stage_is_checked_at_its_own_lines(tmp_path: Path) -> None:
    found = problems(tmp_path, STAGES)
    heads = [": ".join(line.split(": ")[:3]) for line in found]
    assert [head[: len(start)] for head, start in zip(heads, EXPECTED_HEADS, strict=True)] == EXPECTED_HEADS
    assert "did you mean 'size'" in found[0]
    assert "names no earlier stage; the earlier ones are world" in found[1]
    assert "did you mean 'train'" in found[5]


EXPECTED_HEADS = [
    "r.yaml:5: stages.0.sise: unknown key",
    "r.yaml:9: stages.1.recipe.data.train.0.path: stage:wrld",
    "r.yaml:12: stages.1.recipe.model.n_layer: unknown key",
    "r.yaml:13: stages.1.recipe.train: give exactly one of steps",
    "r.yaml:14: stages.1.recipe.run: a stage runs in its own folder",
    "r.yaml:15: stages.2: must be one of synth",
    "r.yaml:17: stages.3.do: missing",
    "r.yaml:19: stages.4.name: 'first' is used twice",
]


def test_a_stage_reference_outside_a_pipeline_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, RIGHT + "init_from: stage:first\n")
    assert found.startswith("r.yaml:6: init_from: 'stage:first' names a stage, and only a recipe with stages has those")


def test_pipeline_overrides_name_the_stages_that_there_are(tmp_path: Path) -> None:
    text = "name: a\nstages:\n  - {do: synth, name: world}\n"
    (found,) = problems(tmp_path, text, "stages.wrld.seed=3")
    assert found.endswith("stages: has no item 'wrld'; there are 1, counted from 0, and their names are world")


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml: empty"),
        ("# only a comment\n", "r.yaml: empty"),
        ("- a\n- b\n", "r.yaml: not a list of 'key: value' lines"),
        ("just words\n", "r.yaml: not a list of 'key: value' lines"),
        ("a: 1\nb: [\n", "r.yaml:3: not YAML: "),
        ("a: 1\n\tb: 2\n", "r.yaml:2: not YAML: "),
        ("a: 1\nb: c: d\n", "r.yaml:2: not YAML: "),
        ("a: !!python/object:os.system {}\n", "r.yaml:1: "),
        ("a: 1\x00\n", "r.yaml: not YAML: "),
        ("a: &x [*x]\n", "r.yaml:1: "),
        ("seed: 1\nname: x\nseed: 2\n", "r.yaml:3: seed: given twice (first in line 1); keep one"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(text: str, expected: str, tmp_path: Path) -> None:
    found = problems(tmp_path, text)
    assert found[0].startswith(expected), found
    if "python" not in text:
        assert len(found) == 1 and "\n" not in found[0]


def test_aliases_of_aliases_end_in_a_sentence(tmp_path: Path) -> None:
    rows = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "repeated without end" in problems(tmp_path, "a0: &a0 [x]\n" + rows)[0]


def test_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "poems.yaml").write_text(RIGHT)
    with pytest.raises(RecipeError, match=r"pomes\.yaml: no such file; did you mean 'poems\.yaml'\?"):
        load_recipe("pomes.yaml", cwd=tmp_path)
    with pytest.raises(RecipeError, match=r"tinny: no such file; did you mean 'tiny'\?"):
        load_recipe("tinny", cwd=tmp_path)
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("elsewhere/tiny.yaml", cwd=tmp_path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a folder; give the recipe's .yaml file"):
        load_recipe(tmp_path)


def test_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: 唐诗\n".encode("gb18030"))
    with pytest.raises(RecipeError, match=r"not UTF-8 \(byte 6\); save the file as UTF-8"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_no_permission_is_one_sentence(closed: str, open_folder: Path, ordinary_user: Callable[[], object]) -> None:
    path = open_folder / "sub" / "r.yaml"
    path.parent.mkdir()
    path.write_text(RIGHT)
    (path if closed == "file" else path.parent).chmod(0)
    with ordinary_user(), pytest.raises(RecipeError) as caught:  # type: ignore[attr-defined]
        load_recipe(path, cwd=open_folder)
    assert "ermission" in str(caught.value) and len(caught.value.problems) == 1
