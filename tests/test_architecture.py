"""The house keeps its plan: who may import whom, nothing heavy or dangerous where it does not belong."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "sproutlm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms of ours that it may import. `errors` and `atomic` are open to all; what is not listed here is not restricted.
ALLOWED = {
    "errors": set(),
    "atomic": set(),
    "config": set(),
    "model": {"config"},
    "families": {"config", "model"},
    "distributed": {"config", "model"},
    "data": {"config", "tokenizer"},
    "tokenizer": {"config", "data"},
    "hub": {"config"},
    "objectives": {"config", "model", "families", "data", "train"},
    "train": {"config", "model", "families", "distributed", "data", "objectives"},
    "plan": {"config", "model", "train"},
    "infer": {"config", "model", "families", "tokenizer", "data", "export"},
    "eval": {
        "config",
        "model",
        "families",
        "tokenizer",
        "data",
        "infer",
        "export",
        "train",
        "objectives",
        "distributed",
    },
    "export": {"config", "model", "families", "tokenizer", "data", "train"},
    "verify": {"config", "model", "families", "distributed", "data", "objectives", "train", "eval", "export"},
    "cli": {"config", "data", "tokenizer", "infer", "eval", "export", "pipeline", "plan", "doctor", "hub", "verify"},
}
# (file, module): a step against the direction, with its reason.
EXCEPTIONS = {
    # `sprout data inspect RECIPE` shows what training would read, and only the pipeline knows how that is put together.
    ("data/inspect.py", "pipeline"),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; an import for type checking only does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if checking or inside:
            skipped |= {child for part in node.body for child in ast.walk(part)}  # type: ignore[attr-defined]
    package = ["sproutlm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            # `from .. import model` names a room, too
            yield from (f"{module}.{alias.name}" for alias in node.names)


def our_rooms(path: Path) -> set[str]:
    found = set()
    for module in imports(path):
        parts = module.split(".")
        if (
            parts[0] == "sproutlm"
            and len(parts) > 1
            and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
        ):
            found.add(parts[1])
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_stands_before_them(room: str) -> None:
    for path in (path for path in FILES if room_of(path) == room):
        name = path.relative_to(PACKAGE).as_posix()
        wrong = our_rooms(path) - ALLOWED[room] - {room, "errors", "atomic"}
        wrong = {other for other in wrong if (name, other) not in EXCEPTIONS}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}; {room} may import {sorted(ALLOWED[room])}"


def test_the_trainer_imports_neither_inference_nor_evaluation() -> None:
    for room in ("train", "objectives"):
        for path in (path for path in FILES if room_of(path) == room):
            assert not our_rooms(path) & {"infer", "eval", "pipeline", "export", "cli"}, path


def test_the_command_line_holds_no_training_logic() -> None:
    for path in (path for path in FILES if room_of(path) == "cli"):
        modules = list(imports(path))
        assert not [module for module in modules if module.split(".")[0] == "torch"], path
        assert not our_rooms(path) & {"train", "objectives", "model"}, path


@pytest.mark.parametrize("room", ["__init__", "atomic", "cli", "config", "errors"])
def test_nothing_heavy_is_imported_at_the_door(room: str) -> None:
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "safetensors", "numpy", "pyarrow", "rich"}
    for path in (path for path in FILES if room_of(path) == room):
        found = {module.split(".")[0] for module in imports(path, top_level_only=True)} & heavy
        assert not found, f"{path}: {found} at the top"


def test_the_reader_of_an_import_sees_through_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: the forms in which an import can be written are all recognised."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    for room in ("infer", "train"):
        (tmp_path / room).mkdir()
    path = tmp_path / "train" / "trainer.py"
    for line in (
        "import sproutlm.infer.engine",
        "from sproutlm.infer import engine",
        "from sproutlm import infer",
        "from .. import infer",
        "from ..infer.engine import Engine",
        "def f():\n    from ..infer import engine",
    ):
        path.write_text(line)
        assert our_rooms(path) == {"infer"}, line
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..infer import engine")
    assert our_rooms(path) == set()


# --- what is not done anywhere ------------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec", "os.system", "joblib.load", "yaml.load"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}


def code_lines(path: Path) -> str:
    """The code without comments and texts that span lines (docstrings), so that a rule may be named in words."""
    kept = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type != tokenize.COMMENT and not (token.type == tokenize.STRING and token.start[1] == 0):
            kept.append(token.string)
    return " ".join(kept)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_unpickles_evaluates_or_runs_remote_code(path: Path) -> None:
    """pitfall 42: no pickle, no eval() on anything, no code from a model's folder, no listening to the whole network."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & FORBIDDEN_CALLS
    assert not {module.split(".")[0] for module in imports(path)} & FORBIDDEN_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword):
            assert not (node.arg == "trust_remote_code" and ast.unparse(node.value) != "False")
            assert not (node.arg == "weights_only" and ast.unparse(node.value) != "True")
            assert not (node.arg == "shell" and ast.unparse(node.value) == "True")
            assert not (node.arg == "allow_pickle" and ast.unparse(node.value) == "True")
    assert "0.0.0.0" not in code_lines(path)


def test_every_file_can_be_read_in_one_sitting() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 450}


def test_file_names_say_what_is_inside() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "manager", "common", "misc")]


def test_no_folder_of_one_machine_is_named_in_the_package() -> None:
    """pitfall 44: an absolute default works on one machine only."""
    machine = re.compile(r"""["'(\s](/home/|/root/|/mnt/|/work/|/Users/|C:\\\\)""")
    for path in [*FILES, *(ROOT / "recipes").glob("*.yaml")]:
        assert not machine.search(path.read_text(encoding="utf-8")), path
