"""docs/when-it-breaks names a drill for each fault, and each drill: in both languages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/when-it-breaks.md", "docs/when-it-breaks.zh.md")
ELSEWHERE = ("tests/end_to_end/test_kill_and_resume.py", "tests/pipeline/test_train_continuation.py")
# Not a fault: a command of the page, or the drills themselves.
UNNAMED = {"test_going_back_is_removing_the_newer_checkpoints", "test_the_drills_interrupt_between_saves"}


def drills_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def drills_named(text: str) -> list[str]:
    """The last cell of each row of the table of faults."""
    return re.findall(r"^\|.*\| `(test_\w+)` \|$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_fault_names_a_drill_that_is_there_and_every_drill_stands_in_the_table(page: str) -> None:
    named = drills_named((ROOT / page).read_text(encoding="utf-8"))
    files = ("test_drills.py", "test_ranks.py", "test_network.py")
    ours = set().union(*(drills_in(Path(__file__).with_name(file)) for file in files))
    others = set().union(*(drills_in(ROOT / file) for file in ELSEWHERE))
    assert len(named) == len(set(named)) > 10
    assert not set(named) - ours - others
    assert ours - UNNAMED <= set(named)


def test_both_languages_name_the_same_drills_in_the_same_order() -> None:
    english, chinese = (drills_named((ROOT / page).read_text(encoding="utf-8")) for page in PAGES)
    assert english == chinese


def test_a_drill_that_is_not_there_is_found() -> None:
    """The test above can fail."""
    assert drills_named("| a fault | ends | nothing | goes on | `test_nowhere` |") == ["test_nowhere"]
    assert "test_nowhere" not in drills_in(Path(__file__))
