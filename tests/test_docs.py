"""What a person reads works: commands exist, links lead somewhere, both languages say the same, Python blocks run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

import sproutlm
from sproutlm import errors
from sproutlm.cli import app
from sproutlm.config import Pipeline, Recipe
from sproutlm.config.clean import CleanRecipe
from sproutlm.config.load import load_recipe, shipped_recipes
from sproutlm.config.schema import DataConfig

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    ("README.md", "README.zh.md"),
    ("docs/own-data.md", "docs/own-data.zh.md"),
    ("docs/download.md", "docs/download.zh.md"),
    ("docs/models.md", "docs/models.zh.md"),
    ("docs/train-faster.md", "docs/train-faster.zh.md"),
    ("docs/does-not-fit.md", "docs/does-not-fit.zh.md"),
    ("docs/healthy-run.md", "docs/healthy-run.zh.md"),
    ("docs/many-gpus.md", "docs/many-gpus.zh.md"),
    ("docs/when-it-breaks.md", "docs/when-it-breaks.zh.md"),
]
PAGES = [page for pair in PAIRS for page in pair]
ALL_PAGES = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"]
SHELLS = ("bash", "powershell")


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The name in a first line such as ``# my-text.yaml``: a block that stands for a file of that name."""
        named = re.match(r"# ([\w-]+\.\w+)\n", self.text)
        return named[1] if named else None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    return tuple(Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE))


def commands(page: str) -> Iterator[list[str]]:
    """The command lines of a page's shell blocks, as arguments, settings of the environment in front left out."""
    for block in blocks(page):
        for line in block.text.splitlines() if block.language in SHELLS else ():
            words = shlex.split(line, comments=True, posix=block.language == "bash")
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words


def verbs(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, command) of every verb below ``command``."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child, below in children.items():
        yield from verbs(below, f"{name} {child}".strip())


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb that ``sprout ARGUMENTS`` would start, and with what; nothing is started. Raises as the command would."""
    tree = get_command(app)
    started: list[tuple[str, dict[str, Any]]] = []
    for name, verb in verbs(tree):
        verb.callback = lambda _name=name, **values: started.append((_name, values))
    tree.main(args=list(arguments), prog_name="sprout", standalone_mode=False)
    (call,) = started
    return call


# --- commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_command_on_the_page_exists_with_its_options(page: str) -> None:
    seen = 0
    for program, *arguments in commands(page):
        if Path(program).name == "sprout":
            try:
                parse(arguments)
            except Exception as error:
                pytest.fail(f"{page}: sprout {shlex.join(arguments)}: {error}")
            seen += 1
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", read("Makefile"), re.MULTILINE), f"{page}: make {arguments[0]}"
    assert seen


def test_a_command_that_does_not_exist_is_noticed() -> None:
    """The test above can fail: at a verb, an option, a value, and a missing argument."""
    for line in ("trian tiny", "train tiny --steps 3", "data synth w --size huge", "export hf runs/tiny", "chat a b"):
        with pytest.raises(Exception, match=r"(?i)no such|not one of|missing|unexpected"):
            parse(line.split())
    verb, values = parse(["train", "tiny", "seed=2", "--change", "train.steps=9"])
    assert (verb, values["settings"], values["change"]) == ("train", ["seed=2"], ["train.steps=9"])


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_recipe_and_setting_on_the_page_is_valid(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "yaml":
            assert block.file_name, f"{page}: a recipe without its file's name in the first line"
            (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
    for path in tmp_path.glob("*.yaml"):
        assert isinstance(load_recipe(path).recipe, Recipe | CleanRecipe)
    faults = []
    for program, *arguments in commands(page):
        if Path(program).name == "sprout":
            verb, values = parse(arguments)
            try:
                load_what_is_named(verb, values)
            except errors.RecipeError as error:
                faults.append(f"sprout {shlex.join(arguments)}: {error}")
    assert not faults, "\n".join(faults)


def load_what_is_named(verb: str, values: dict[str, Any]) -> None:
    """Load the recipe that a command names, with its settings; a recipe of the other kind is a RecipeError, too."""
    settings = [*(values.get("settings") or []), *(values.get("change") or [])]
    if verb == "quickstart":
        name = "quickstart" if values["data"] is None else "quickstart-own-text"
        load_recipe(
            shipped_recipes() / f"{name}.yaml", settings, environ={"SPROUT_TEXT": str(Path("x.txt").absolute())}
        )
    elif verb in ("train", "launch", "run", "data prepare"):
        loaded = load_recipe(values["recipe"], settings)
        if isinstance(loaded.recipe, Pipeline) != (verb == "run"):
            raise errors.RecipeError([f"{values['recipe']} is not for {verb}"])


@pytest.mark.parametrize("page", PAGES)
def test_folders_named_below_a_quickstart_run_are_made_by_it(page: str) -> None:
    pipeline = load_recipe(shipped_recipes() / "quickstart.yaml").recipe
    assert isinstance(pipeline, Pipeline)
    known = {"report.json", "loss.png"} | {stage.name for stage in pipeline.stages}
    assert set(re.findall(r"runs/quickstart/([\w.-]+\w)", read(page))) <= known


# --- links, and both languages ------------------------------------------------------------------------------------------


def links(page: str) -> list[str]:
    """Targets of a page's links, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    targets = [link.partition("#")[0] for link in links(page) if not re.match(r"[a-z]+:", link)]
    missing = [target for target in targets if target and not ((ROOT / page).parent / target).exists()]
    assert not missing, f"{page}: {missing}"


def anchors(page: Path) -> set[str]:
    """What links into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_link_into_a_page_names_a_heading_there(page: str) -> None:
    parts = [link.partition("#") for link in links(page) if "#" in link and not re.match(r"[a-z]+:", link)]
    missing = [
        f"{file}#{anchor}"
        for file, _, anchor in parts
        if anchor not in anchors((ROOT / page).parent / file if file else ROOT / page)
    ]
    assert not missing, f"{page}: {missing}"


def test_a_promise_names_tests_that_are_there() -> None:
    for page in PAIRS[0]:
        named = {link for link in links(page) if link.startswith("tests/")}
        assert len(named) > 5
        assert not [link for link in named if not (link.endswith(".py") or any((ROOT / link).glob("test_*.py")))]


def without_comments(block: Block) -> list[str]:
    lines = (re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in block.text.splitlines())
    return [re.sub(r"\s{2,}$", "", line) for line in lines if line]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_hold_the_same_code(english: str, chinese: str) -> None:
    ours, theirs = blocks(english), blocks(chinese)
    assert [block.language for block in ours] == [block.language for block in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert without_comments(one) == without_comments(other)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_are_equally_complete(english: str, chinese: str) -> None:
    """As many headings, tables rows and links, to the same places (a page in one's own language for one in the other)."""

    def outline(page: str) -> tuple[list[int], int, list[str]]:
        text = read(page)
        headings = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"(?ms)^```.*?^```$", "", text), re.MULTILINE)]
        targets = sorted({link.replace(".zh.md", ".md").partition("#")[0] for link in links(page)})
        return headings, len(re.findall(r"^\|", text, re.MULTILINE)), targets

    assert outline(english) == outline(chinese)


# --- tables that repeat what the code knows -----------------------------------------------------------------------------


def first_cells(page: str) -> list[str]:
    """The first cell of every table row, headings left out."""
    rows = re.sub(r"^\|.*\n\| ---.*\n", "", read(page), flags=re.MULTILINE)
    return [cell.strip() for cell in re.findall(r"^\| ([^|]*)\|", rows, re.MULTILINE)]


@pytest.mark.parametrize("page", PAIRS[0])
def test_the_map_names_every_room(page: str) -> None:
    package = ROOT / "src" / "sproutlm"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {cell.strip("`/") for cell in first_cells(page) if cell.endswith("/`")} == rooms


@pytest.mark.parametrize("page", PAIRS[0])
def test_the_exit_codes_are_those_of_the_errors(page: str) -> None:
    kinds: list[type[errors.SproutError]] = [errors.SproutError, *errors.SproutError.__subclasses__()]
    assert {int(cell) for cell in first_cells(page) if cell.isdecimal()} == {0} | {kind.exit_code for kind in kinds}


@pytest.mark.parametrize("page", PAIRS[1])
def test_the_tables_on_own_files_are_those_of_the_reader(page: str) -> None:
    from sproutlm.data.files import SUFFIXES
    from sproutlm.data.formats import FORMATS
    from sproutlm.data.token_files import SUFFIXES as TOKEN_SUFFIXES

    cells = first_cells(page)
    words = {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    rows_of = {*SUFFIXES, *TOKEN_SUFFIXES}
    policies = get_args(DataConfig.model_fields["on_long"].annotation)
    assert words == {*rows_of, *policies, *(known.name for known in FORMATS)}
    # The first format that fits is taken: the order says which.
    in_order = [known.name for known in FORMATS]
    assert [word for cell in cells for word in re.findall(r"`([^`]+)`", cell) if word in in_order] == in_order


# --- Python -------------------------------------------------------------------------------------------------------------


def test_python_blocks_of_contributing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprout: Callable[..., Any]
) -> None:
    """A block that begins with a file's name is that file; the others run in order, each on its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    executed = 0
    for number, block in enumerate(blocks("CONTRIBUTING.md")):
        if block.language == "python" and block.file_name:
            (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"CONTRIBUTING.md, block {number}", "exec"), {"__name__": "__contributing__"})
            executed += 1
    assert executed >= 3
    ran = sprout("data", "inspect", "plays.jsonl", "--format", "play_format:PLAY")
    assert ran.code == 0 and "line without a speaker 1" in ran.out, ran.err


@pytest.mark.parametrize("page", PAIRS[0])
def test_the_python_block_of_the_readme_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sproutlm.config.model import ModelConfig
    from sproutlm.export.huggingface import save
    from sproutlm.model import Transformer
    from sproutlm.tokenizer.train import train_tokenizer

    tokenizer = train_tokenizer(["once upon a time"] * 4, 300)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2)).init_weights(1)
    save(model, tokenizer, tmp_path / "runs" / "tiny" / "model")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks(page) if block.language == "python")
    found: dict[str, Any] = {}
    exec(compile(block.text, page, "exec"), found)
    assert found["sproutlm"] is sproutlm
    ids = found["tokenizer"].encode("once")
    assert found["model"](torch.tensor([ids])).shape == (1, len(ids), tokenizer.vocab_size)
    assert found["tokenizer"].decode(ids) == "once"
