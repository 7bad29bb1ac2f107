"""The command: fast help, exit codes, one message for a person's mistake, figures as JSON, from any folder."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config import Pipeline, Recipe
from sproutlm.errors import CheckFailed, DataError, Interrupted, OutOfMemory

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE}
VERBS = ["", "train", "run", "quickstart", "schema", "chat", "generate", "eval", "doctor"]
VERBS += ["data", "data synth", "data prepare", "data inspect", "tokenizer", "tokenizer train", "tokenizer test"]
VERBS += ["export", "export hf", "import", "import hf"]

RECIPE = "name: one\ndata: {train: rows.jsonl}\nmodel: {dim: 64, n_layers: 1}\ntrain: {steps: 3}\n"
STAGES = "name: all\nstages:\n  - {do: synth, name: world}\n"

Run = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Put a function in the place of ``module.name``; returns the list of calls that it will have had."""

    def put(module: str, name: str, result: Any = None) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def fake(*arguments: Any, **named: Any) -> Any:
            calls.append((*arguments, named) if named else arguments)
            if isinstance(result, BaseException):
                raise result
            return result

        full_name = f"sproutlm.{module}"
        fakes = sys.modules.get(full_name)
        if not isinstance(fakes, _Fake):
            fakes = _Fake(full_name)
            monkeypatch.setitem(sys.modules, full_name, fakes)
        setattr(fakes, name, fake)
        return calls

    return put


class _Fake(types.ModuleType):
    pass


# --- help ---------------------------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    """Under 0.3 s on an idle machine. Processor time, which a busy machine stretches less; the limit leaves room for that."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    seconds = []
    for _ in range(3):
        start = used()
        subprocess.run([sys.executable, "-m", "sproutlm", "--help"], env=ENVIRONMENT, check=True, capture_output=True)
        seconds.append(used() - start)
    print(f"sprout --help: {min(seconds):.2f} s")
    assert min(seconds) < 0.6


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, sprout: Run) -> None:
    ran = sprout(*verb.split(), "--help")
    assert ran.code == 0 and ran.out.startswith(f"Usage: sprout {verb}".rstrip())


def test_help_and_recipes_are_found_from_any_folder(tmp_path: Path) -> None:
    """pitfall 44: nothing depends on the folder where the command is typed."""
    for arguments, expected in ((["--help"], "Usage: sprout"), (["train", "tiny", "oops"], "command line: oops")):
        ran = subprocess.run(
            [sys.executable, "-m", "sproutlm", *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert expected in ran.stdout + ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sproutlm.cli import main; main(['--help']); "
        "sys.exit(bool({'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True).returncode == 0


def test_a_warning_is_a_sentence_without_the_code_that_gave_it(sprout: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert sprout("--version").code == 0
    warnings.warn("pad = eos", stacklevel=1)
    assert capsys.readouterr().err == "warning: pad = eos\n"


def test_version(sprout: Run) -> None:
    assert sprout("--version").out == "sproutlm 0.1.0\n"


# --- exit codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("rows.jsonl:3: not JSON; mend the line"), 1, "error: rows.jsonl:3: not JSON; mend the line\n"),
        (CheckFailed("stop rate 0.5 is below 0.99"), 2, "error: stop rate 0.5 is below 0.99\n"),
        (OutOfMemory("the step needs 9 GiB"), 3, "error: the step needs 9 GiB\n"),
        (MemoryError(), 3, "error: out of memory: no memory left."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3, "error: out of memory: "),
        (Interrupted("stopped and saved at step 3"), 130, "error: stopped and saved at step 3\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device", "x.bin"), 1, "error: the disk is full (x.bin)"),
    ],
)
def test_exit_codes(error: BaseException, code: int, message: str, sprout: Run, stand_in: Run, recipe: Path) -> None:
    stand_in("pipeline.train", "train", error)
    ran = sprout("train", recipe)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(message) and "Traceback" not in ran.err


def test_a_fault_of_ours_keeps_its_traceback(sprout: Run, stand_in: Run, recipe: Path) -> None:
    stand_in("pipeline.train", "train", RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        sprout("train", recipe)


def test_several_problems_are_counted_and_stand_one_to_a_line(sprout: Run, recipe: Path) -> None:
    ran = sprout("train", recipe, "sead=1", "train.step=2")
    assert ran.code == 1
    assert ran.err.splitlines()[0] == "error: 2 problems"
    assert len(ran.err.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train", "tiny", "--foo"], ["chat", "x", "--top-k", "many"], ["export", "hf", "x"]]
)
def test_a_command_line_that_cannot_be_read_is_a_persons_mistake(arguments: list[str], sprout: Run) -> None:
    ran = sprout(*arguments)
    assert ran.code == 1
    assert ran.err.startswith("error: ") and "--help" in ran.err and len(ran.err.splitlines()) == 1


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sproutlm", "schema"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_terminal_that_cannot_show_chinese_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "诗.yaml").write_text("[")
    ran = subprocess.run(
        [sys.executable, "-m", "sproutlm", "train", str(tmp_path / "诗.yaml")],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert ran.returncode == 1 and b"Traceback" not in ran.stderr


# --- train, run, quickstart ---------------------------------------------------------------------------------------------


def test_train_hands_over_the_recipe_and_the_changes(sprout: Run, stand_in: Run, recipe: Path, tmp_path: Path) -> None:
    calls = stand_in("pipeline.train", "train", {"step": 7, "loss": float("nan")})
    out = tmp_path / "figures.json"
    ran = sprout("train", recipe, "seed=4", "--change", "train.steps=9", "--change", "optimizer.lr=0.5", "--json", out)
    assert ran.code == 0, ran.err
    ((loaded, changes),) = calls
    assert isinstance(loaded.recipe, Recipe)
    assert (loaded.recipe.seed, loaded.recipe.train.steps, loaded.recipe.optimizer.lr) == (4, 9, 0.5)
    assert changes == ["train.steps=9", "optimizer.lr=0.5"]
    assert json.loads(out.read_text()) == {"step": 7, "loss": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "r.yaml"]


@pytest.mark.parametrize("verb", ["train", "run"])
def test_dry_run_plans_and_does_not_train(verb: str, sprout: Run, stand_in: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE if verb == "train" else STAGES)
    done = stand_in(f"pipeline.{verb}", verb)
    planned = stand_in("pipeline.dry_run", "dry_run", {"parameters": 5})
    printed = stand_in("pipeline.dry_run", "print_dry_run")
    ran = sprout(verb, tmp_path / "r.yaml", "--dry-run", "--json", tmp_path / "plan.json")
    assert (ran.code, len(planned), printed, done) == (0, 1, [({"parameters": 5},)], [])
    assert json.loads((tmp_path / "plan.json").read_text()) == {"parameters": 5}


def test_the_wrong_verb_for_a_recipe_names_the_right_one(sprout: Run, recipe: Path, tmp_path: Path) -> None:
    assert "use: sprout train" in sprout("run", recipe).err
    stages = tmp_path / "stages.yaml"
    stages.write_text(STAGES)
    assert "use: sprout run" in sprout("train", stages).err


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(
    sprout: Run, stand_in: Run, recipe: Path, tmp_path: Path
) -> None:
    calls = stand_in("pipeline.train", "train", {})
    assert "does not exist" in sprout("train", recipe, "--json", tmp_path / "no" / "x.json").err
    assert "is a folder" in sprout("train", recipe, "--json", tmp_path).err
    assert calls == []


@pytest.mark.parametrize("own", [False, True])
def test_quickstart_is_run_of_a_shipped_recipe(
    own: bool, sprout: Run, stand_in: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sproutlm.config.load import shipped_recipes

    name = "quickstart-own-text" if own else "quickstart"
    if not (shipped_recipes() / f"{name}.yaml").is_file():
        pytest.skip(f"no shipped recipe {name}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("once")
    calls = stand_in("pipeline.run", "run", {"seconds": 1})
    data = ["--data", "mine.txt"] if own else []
    assert sprout("quickstart", *data).code == 0
    assert sprout("quickstart", *data, "--out", "my: folder", "seed=9").code == 0
    (first,), (second,) = calls
    assert isinstance(first.recipe, Pipeline)
    assert first.path == shipped_recipes() / f"{name}.yaml"
    assert first.run_dir == tmp_path / "runs" / name
    assert (second.run_dir, second.recipe.seed) == (tmp_path / "my: folder", 9)
    assert (str(tmp_path / "mine.txt") in str(first.recipe)) == own


def test_quickstart_refuses_a_missing_text(sprout: Run, tmp_path: Path) -> None:
    assert "no such file" in sprout("quickstart", "--data", tmp_path / "none.txt").err
    assert "is a folder" in sprout("quickstart", "--data", tmp_path).err


# --- the other verbs ----------------------------------------------------------------------------------------------------


def test_schema_goes_to_stdout_or_a_file(sprout: Run, tmp_path: Path) -> None:
    ran = sprout("schema")
    assert sprout("schema", "--out", tmp_path / "s.json").code == 0
    assert json.loads(ran.out) == json.loads((tmp_path / "s.json").read_text())


AS_THEY_STAND = {"fill": {}, "role_order": "strict"}


def test_inspect_tells_recipes_from_data_files(sprout: Run, stand_in: Run, recipe: Path, tmp_path: Path) -> None:
    of_recipe = stand_in("data.inspect", "inspect_recipe", {"rows": []})
    of_file = stand_in("data.inspect", "inspect_file", {"rows": []})
    stand_in("data.inspect", "render")
    assert sprout("data", "inspect", recipe, "--rows", "2").code == 0
    assert sprout("data", "inspect", tmp_path / "x.jsonl", "--seq-len", "64", "--format", "alpaca").code == 0
    assert [call[1] for call in of_recipe] == [2]
    assert of_file == [(tmp_path / "x.jsonl", None, 3, 64, "alpaca", {}, "utf-8", AS_THEY_STAND)]
    assert "is a data file" in sprout("data", "inspect", tmp_path / "x.jsonl", "seed=1").err
    assert sprout("data", "inspect", "tiny").code == 0, "the name of a shipped recipe"
    assert len(of_recipe) == 2


def test_inspect_of_a_file_takes_columns_and_an_encoding(sprout: Run, stand_in: Run, recipe: Path) -> None:
    of_file = stand_in("data.inspect", "inspect_file", {"rows": []})
    stand_in("data.inspect", "inspect_recipe")
    stand_in("data.inspect", "render")
    chosen = ("--columns", "text=text.prompt", "--columns", "split=line", "--encoding", "gb18030")
    assert sprout("data", "inspect", "x.jsonl", *chosen).code == 0
    assert of_file[0][-3:] == ({"text": "text.prompt", "split": "line"}, "gb18030", AS_THEY_STAND)
    assert sprout("data", "inspect", "x.jsonl", "--fill", "name=a=b", "--role-order", "any").code == 0
    assert of_file[1][-1] == {"fill": {"name": "a=b"}, "role_order": "any"}
    assert "expected NAME=TEXT" in sprout("data", "inspect", "x.jsonl", "--fill", "name").err
    assert "expected FIELD=COLUMN" in sprout("data", "inspect", "x.jsonl", "--columns", "text").err
    assert "stand in it" in sprout("data", "inspect", recipe, "--columns", "text=body").err


def test_a_tokenizer_that_fails_a_check_ends_with_code_2_after_its_report(
    sprout: Run, stand_in: Run, tmp_path: Path
) -> None:
    checks = [{"name": "round trips", "ok": False}, {"name": "ids", "ok": True}, {"name": "zh", "ok": None}]
    stand_in("tokenizer.check", "check_tokenizer", {"checks": checks})
    printed = stand_in("tokenizer.check", "print_report")
    ran = sprout("tokenizer", "test", tmp_path, "--json", tmp_path / "t.json")
    assert (ran.code, len(printed)) == (2, 1)
    assert "round trips" in ran.err and "ids" not in ran.err
    assert json.loads((tmp_path / "t.json").read_text())["checks"] == checks


def test_json_takes_numpy_values_paths_and_chinese(tmp_path: Path) -> None:
    import numpy as np

    from sproutlm.cli.arguments import write_json

    report = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x"), "d": (1, float("inf")), 3: "诗", "e": True}
    write_json(tmp_path / "x.json", report)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "诗" in text
    assert json.loads(text) == {"a": 0.5, "b": [0, 1], "c": "x", "d": [1, None], "3": "诗", "e": True}


def test_load_is_reached_without_importing_torch_first() -> None:
    code = "import sys, sproutlm; assert 'torch' not in sys.modules; assert callable(sproutlm.load); print(sproutlm.__version__)"
    ran = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.stdout.strip() == "0.1.0", ran.stderr


def test_sampling_settings_reach_the_model(sprout: Run, stand_in: Run, tmp_path: Path) -> None:
    chats = stand_in("infer.chat", "chat")
    texts = stand_in("infer.generate", "generate", {"text": "x"})
    flags = ["--top-k", "5", "--top-p", "0.5", "--repetition-penalty", "1.5", "--max-tokens", "9", "--seed", "3"]
    assert sprout("chat", tmp_path, "--system", "be brief", "--temperature", "0.2", *flags).code == 0
    assert sprout("generate", tmp_path, "Once", "--greedy", "--raw", *flags, "--json", tmp_path / "g.json").code == 0
    assert sprout("generate", tmp_path).code == 0
    shared = {"top_k": 5, "top_p": 0.5, "repetition_penalty": 1.5, "max_tokens": 9, "seed": 3}
    assert chats == [(tmp_path, {"system": "be brief", "temperature": 0.2, **shared})]
    assert texts[0] == (tmp_path, "Once", {"as_chat": False, "system": None, "temperature": 0.0, **shared})
    assert texts[1][2]["as_chat"] is None and texts[1][2]["top_p"] == 1.0
    assert json.loads((tmp_path / "g.json").read_text()) == {"text": "x"}
