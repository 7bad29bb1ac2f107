"""What every test gets: no network, one thread, and ways to run the command and to lose root's rights."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def sprout(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``sprout ARGUMENTS`` in this process."""

    def run(*arguments: str | Path) -> Ran:
        from sproutlm.cli import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="sprout-"))
    folder.chmod(0o777)
    yield folder
    for child in [folder, *folder.rglob("*")]:
        if child.is_dir() and not child.is_symlink():
            child.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def ordinary_user() -> Callable[[], object]:
    """``with ordinary_user():`` runs without root's rights, so that permissions count for a test that root runs."""

    @contextmanager
    def drop() -> Iterator[None]:
        if os.name == "nt" or os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop
