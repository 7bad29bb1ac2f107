"""Recipes: what loads, what is filled in, and what comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from sproutlm.config import Pipeline, Recipe, dump_recipe, load_recipe, run_dir
from sproutlm.config.load import Loaded, shipped_recipes
from sproutlm.errors import RecipeError

MINIMAL = """\
name: one
data:
  train: rows.jsonl
model: {dim: 64, n_layers: 1}
train: {steps: 3}
"""

STAGES = """\
name: all
stages:
  - do: synth
    name: world
  - do: train
    name: first
    recipe:
      data: {train: "stage:world/pretrain.jsonl"}
      model: {dim: 64}
      train: {steps: 3}
  - do: train
    name: second
    recipe:
      stage: sft
      init_from: stage:first
      tokenizer: toks
      data: {train: [mine.jsonl], validation: other.jsonl}
      train: {steps: 3}
  - do: eval
    name: measure
    model: stage:second
    questions: stage:world/questions.jsonl
    text: held.txt
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def recipe_of(loaded: Loaded) -> Recipe:
    assert isinstance(loaded.recipe, Recipe)
    return loaded.recipe


@pytest.mark.parametrize("path", sorted(shipped_recipes().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_leaves_the_run_folder_open(path: Path) -> None:
    loaded = load_recipe(path, environ={"SPROUT_TEXT": "/x/text.txt"})
    assert getattr(loaded.recipe, "run", None) is None  # recipes of cleaning have none
    assert loaded.recipe.name == path.stem


def test_short_forms_mean_the_same_as_the_long_ones(tmp_path: Path) -> None:
    short = MINIMAL.replace("rows.jsonl", "[rows.jsonl, {path: b.txt, repeat: 2}]") + "tokenizer: toks\n"
    long = MINIMAL.replace("train: rows.jsonl", "train:\n    - path: rows.jsonl\n    - path: b.txt\n      repeat: 2")
    long += "tokenizer: {path: toks}\n"
    a, b = (load_recipe(write(tmp_path, text, f"{n}.yaml")).recipe for n, text in enumerate((short, long)))
    assert a == b
    single = recipe_of(load_recipe(write(tmp_path, MINIMAL.replace("rows.jsonl", "{path: rows.jsonl, max_rows: 4}"))))
    assert single.data.train[0].max_rows == 4


def test_validation_takes_a_number_of_rows_a_file_or_sources(tmp_path: Path) -> None:
    for text, kind in (
        ("{rows: 5}", "HoldoutConfig"),
        ("v.txt", "list"),
        ("[v.txt]", "list"),
        ("{path: v.txt}", "list"),
    ):
        recipe = recipe_of(load_recipe(write(tmp_path, MINIMAL.replace("jsonl\n", f"jsonl\n  validation: {text}\n"))))
        assert type(recipe.data.validation).__name__ == kind


def test_paths_of_the_file_are_relative_to_it_and_those_of_the_command_line_to_the_current_folder(
    tmp_path: Path,
) -> None:
    """pitfall 44: the same recipe means the same files from any folder."""
    path = write(tmp_path / "deep", MINIMAL + "tokenizer: ../toks\nrun: out\n")
    here = tmp_path / "here"
    recipe = recipe_of(load_recipe(path, ["data.validation=held.txt", "init_from=old"], cwd=here))
    assert recipe.data.train[0].path == str(tmp_path / "deep" / "rows.jsonl")
    assert recipe.tokenizer.path == str(tmp_path / "toks")
    assert recipe.run == str(tmp_path / "deep" / "out")
    assert isinstance(recipe.data.validation, list)
    assert recipe.data.validation[0].path == str(here / "held.txt")
    assert recipe.init_from == str(here / "old")


def test_names_that_are_no_paths_stay_as_they_are(tmp_path: Path) -> None:
    text = MINIMAL.replace("rows.jsonl", "synth:tiny/pretrain") + "init_from: random\n"
    recipe = recipe_of(load_recipe(write(tmp_path, text)))
    assert recipe.data.train[0].path == "synth:tiny/pretrain"
    assert recipe.init_from == "random"


def test_home_is_filled_in(tmp_path: Path) -> None:
    recipe = recipe_of(load_recipe(write(tmp_path, MINIMAL.replace("rows.jsonl", "~/rows.jsonl"))))
    assert recipe.data.train[0].path == os.path.expanduser("~/rows.jsonl")


def test_run_folder_is_the_recipes_name_below_the_current_folder_unless_given(tmp_path: Path) -> None:
    path = write(tmp_path / "deep", MINIMAL)
    assert load_recipe(path, cwd=tmp_path).run_dir == tmp_path / "runs" / "one"
    assert load_recipe(path, ["run=x"], cwd=tmp_path).run_dir == tmp_path / "x"
    assert run_dir(load_recipe(path).recipe, tmp_path) == tmp_path / "runs" / "one"


def test_variables_are_filled_everywhere_with_defaults_and_an_escape(tmp_path: Path) -> None:
    text = MINIMAL.replace("rows.jsonl", "${CORPUS}/rows.jsonl").replace("steps: 3", "steps: '${STEPS:-7}'")
    text += "sample: {prompts: ['$${CORPUS}', '${EMPTY:-gone}', '${EMPTY}x']}\n"
    recipe = recipe_of(load_recipe(write(tmp_path, text), environ={"CORPUS": "/big", "EMPTY": ""}))
    assert recipe.data.train[0].path == "/big/rows.jsonl"
    assert recipe.train.steps == 7
    assert recipe.sample.prompts == ["${CORPUS}", "gone", "x"]


def test_overrides_reach_sections_lists_and_stages_by_number_and_name(tmp_path: Path) -> None:
    recipe = recipe_of(load_recipe(write(tmp_path, MINIMAL), ["optimizer.lr=1e-3", "data.train.0.repeat=2"]))
    assert recipe.optimizer.lr == 1e-3
    assert recipe.data.train[0].repeat == 2
    for name in ("1", "first"):
        pipeline = load_recipe(write(tmp_path, STAGES), [f"stages.{name}.recipe.train.steps=9"]).recipe
        assert isinstance(pipeline, Pipeline)
        assert pipeline.stages[1].recipe["train"]["steps"] == 9  # type: ignore[union-attr]


def test_override_can_take_a_setting_away(tmp_path: Path) -> None:
    recipe = recipe_of(load_recipe(write(tmp_path, MINIMAL), ["train.steps=null", "train.tokens=9000"]))
    assert (recipe.train.steps, recipe.train.tokens) == (None, 9000)


def test_a_stage_is_named_and_placed_after_itself_and_its_paths_are_absolute(tmp_path: Path) -> None:
    pipeline = load_recipe(write(tmp_path, STAGES)).recipe
    assert isinstance(pipeline, Pipeline)
    second = Recipe.model_validate(pipeline.stages[2].recipe)  # type: ignore[union-attr]
    assert (second.name, second.run, second.init_from) == ("second", None, "stage:first")
    assert second.data.train[0].path == str(tmp_path / "mine.jsonl")
    assert second.tokenizer.path == str(tmp_path / "toks")
    assert pipeline.stages[3].text == str(tmp_path / "held.txt")  # type: ignore[union-attr]
    assert pipeline.stages[3].questions == "stage:world/questions.jsonl"  # type: ignore[union-attr]


def test_source_lines_point_into_the_file(tmp_path: Path) -> None:
    lines = load_recipe(write(tmp_path, MINIMAL), ["seed=3"]).source_lines
    assert (lines["data"], lines["data.train"], lines["train.steps"], lines["seed"]) == (2, 3, 5, 0)


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", "recipes/tiny.yaml"])
def test_shipped_recipe_is_found_from_any_folder_and_this_is_said(name: str, tmp_path: Path) -> None:
    loaded = load_recipe(name, cwd=tmp_path)
    assert loaded.path == shipped_recipes() / "tiny.yaml"
    assert "taking the shipped recipe" in loaded.notes[0]


def test_a_file_of_ones_own_wins_over_the_shipped_one(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL, "tiny.yaml")
    loaded = load_recipe("tiny.yaml", cwd=tmp_path)
    assert (loaded.path, loaded.notes) == (path, ())


@pytest.mark.parametrize("text", [MINIMAL, STAGES])
def test_dumped_recipe_loads_as_an_equal_one_from_another_folder(text: str, tmp_path: Path) -> None:
    first = load_recipe(write(tmp_path, text)).recipe
    again = load_recipe(write(tmp_path / "elsewhere", dump_recipe(first)), cwd="/").recipe
    assert again == first


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(prompt="\x85 \u2028 \u2029 \ufeff", lr=1.0, beta=0.0, encoding="gbk")
@given(
    prompt=st.text(max_size=30),
    lr=st.floats(1e-12, 1e3),
    beta=st.floats(0, 0.9999),
    encoding=st.sampled_from(["gbk", "no", "1e3"]),
)
def test_any_text_and_number_survive_a_dump(prompt: str, lr: float, beta: float, encoding: str, tmp_path: Path) -> None:
    base = recipe_of(load_recipe(write(tmp_path, MINIMAL)))
    recipe = base.model_copy(deep=True)
    recipe.sample.prompts = [prompt, "${HOME} $${", "yes", "2024-01-01"]
    recipe.optimizer.lr, recipe.optimizer.betas = lr, (beta, beta)
    recipe.data.train[0].encoding = encoding
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "again.yaml")).recipe == recipe


def test_yaml_reads_numbers_and_names_as_people_write_them(tmp_path: Path) -> None:
    text = MINIMAL.replace("name: one", "name: 2024-01-01") + "optimizer: {lr: 1e-3, betas: [0.8, 0.95]}\n"
    recipe = recipe_of(load_recipe(write(tmp_path, text)))
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.betas) == ("2024-01-01", 0.001, (0.8, 0.95))


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = MINIMAL.replace("model: {dim: 64, n_layers: 1}", "model: &shape {dim: 64, n_layers: 1}").replace(
        "train: {steps: 3}", "train: &t {steps: 3}\nsample:\n  prompts: [&p hello, *p]"
    )
    assert recipe_of(load_recipe(write(tmp_path, text))).sample.prompts == ["hello", "hello"]
    merged = STAGES.replace("      model: {dim: 64}\n", "      model: &m {dim: 64}\n").replace(
        "      init_from: stage:first\n",
        "      init_from: stage:first\n      model:\n        <<: *m\n        dim: 128\n",
    )
    pipeline = load_recipe(write(tmp_path, merged)).recipe
    assert pipeline.stages[2].recipe["model"] == {"dim": 128}  # type: ignore[union-attr]


def test_byte_order_mark_and_crlf_change_nothing(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, MINIMAL)).recipe
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_recipe(odd).recipe == plain


def test_a_dry_load_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sproutlm.config, sproutlm.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}).returncode == 0


def test_recipe_error_is_one_exception_with_a_line_per_problem(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MINIMAL + "sead: 1\nlr: 1\n"))
    assert len(caught.value.problems) == 2 == len(str(caught.value).splitlines())
