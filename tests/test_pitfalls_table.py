"""docs/pitfalls.md promises a test for each silent fault: they are there, and so are the doctor's checks."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pitfalls.md"
DOCTOR = ROOT / "src" / "sproutlm" / "doctor"
PROMISED = [*range(1, 24), *range(26, 34), 39, 41, 42, 43, 44]


def rows_of(text: str) -> dict[int, tuple[str, str, str]]:
    """number -> (fault, tests, doctor's checks) of the page's tables."""
    found: dict[int, tuple[str, str, str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("| ") else []
        if cells and cells[0].isdigit():
            assert int(cells[0]) not in found, f"number {cells[0]} stands twice"
            found[int(cells[0])] = (cells[1], cells[2], cells[3] if len(cells) > 3 else "")
    return found


ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


@cache
def names_in(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@cache
def strings_in_doctor() -> frozenset[str]:
    """Every text constant of the doctor, and of the checks of tokenizers and templates that it passes on."""
    files = [*DOCTOR.glob("*.py"), *(DOCTOR.parent / "tokenizer" / name for name in ("check.py", "lint.py"))]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    constants = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return frozenset(value for value in constants if isinstance(value, str)) | {"pad = eos", "unk = eos"}


@cache
def numbers_of_doctor() -> frozenset[int]:
    """Pitfalls that a finding of the doctor can carry."""
    numbers: set[int] = set()
    for file in DOCTOR.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
                "ok",
                "warn",
                "fail",
                "attempt",
                "say",
            ):
                numbers |= {a.value for a in node.args if isinstance(a, ast.Constant) and type(a.value) is int}
    return frozenset(numbers)


def test_every_promised_number_has_its_line() -> None:
    assert not set(PROMISED) - set(ROWS)


def test_every_number_that_the_doctor_prints_is_explained() -> None:
    assert numbers_of_doctor() >= {1, 13, 27, 33}  # the reader of the code above sees something
    assert not numbers_of_doctor() - set(ROWS)


@pytest.mark.parametrize("number", sorted(ROWS))
def test_each_named_test_exists(number: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number][1])
    assert named, f"pitfall {number} names no test"
    assert len(named) == ROWS[number][1].count("`") // 2, f"pitfall {number}: a name is not FILE::TEST"
    for file, test in named:
        assert (ROOT / file).is_file(), f"pitfall {number}: no {file}"
        assert test in names_in(ROOT / file), f"pitfall {number}: no {test} in {file}"
        assert test.startswith("test_")


@pytest.mark.parametrize("number", sorted(number for number in ROWS if ROWS[number][2]))
def test_each_named_check_of_the_doctor_exists(number: int) -> None:
    for check in ROWS[number][2].split(";"):
        assert check.strip() in strings_in_doctor(), f"pitfall {number}: the doctor has no check {check.strip()!r}"


def test_a_line_that_names_no_real_test_is_found() -> None:
    """The tests above can fail."""
    rows = rows_of("| 1 | fault | `tests/test_pitfalls_table.py::test_that_is_not_there` | |")
    file, test = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", rows[1][1])[0]
    assert test not in names_in(ROOT / file)
