"""Rows to files and back, and inputs as the verbs take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config.data import SourceConfig
from sproutlm.data.sources import Counts
from sproutlm.data.verbs.rows import Input

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def taken(path: Path | str, on_bad_row: str = "error", **fields: Any) -> Input:
    return Input(SourceConfig(path=str(path), **fields), on_bad_row, lambda sentence: None)


def rows_of(path: Path | str) -> list[Any]:
    """The rows that a file holds, as the verbs read them."""
    counts = Counts()
    found = [row.value for row in taken(path).rows(counts, "reading")]
    counts.check()
    return found


@pytest.fixture
def given() -> Callable[..., Input]:
    return taken


@pytest.fixture
def read() -> Callable[..., list[Any]]:
    return rows_of


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file of the real data; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"real data {name} is not here")
        return SHARED / name

    return find


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write(rows, name)``: a file of them, one JSON value on each line."""

    def put(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return put
