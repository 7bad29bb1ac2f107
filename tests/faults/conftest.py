"""A small run that nobody disturbed, projects that begin as it did, and file systems that can be filled or closed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from drills import PAUSING, RECIPE, Drill, Mount, outcome, write_text

from sproutlm.verify.processes import Launcher, launcher, log_of


@pytest.fixture(scope="session")
def launch() -> Iterator[Launcher]:
    with launcher() as made:
        yield made


@pytest.fixture(scope="session")
def undisturbed(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project whose run went from its beginning to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_text(folder / "text.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "pausing.py").write_text(PAUSING, encoding="utf-8")
    assert launch.train(folder).wait() == 0, log_of(folder)
    return folder


@pytest.fixture
def drill(launch: Launcher, undisturbed: Path, tmp_path: Path) -> Drill:
    """A project that is prepared and has not trained yet."""
    folder = tmp_path / "project"
    (folder / "run").mkdir(parents=True)
    for name in ("text.jsonl", "recipe.yaml", "pausing.py"):
        shutil.copy(undisturbed / name, folder)
    for name in ("tokenizer", "data"):
        shutil.copytree(undisturbed / "run" / name, folder / "run" / name)
    return Drill(folder, launch, lambda: outcome(undisturbed / "run"))


@pytest.fixture
def mount() -> Iterator[Mount]:
    """``mount(folder, options)``: a file system of its own there, or mounted anew with other options."""
    mounted: list[Path] = []

    def make(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if "remount" in options:
            arguments = ["mount", "-o", options, str(folder)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        if folder not in mounted:
            mounted.append(folder)

    yield make
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)
