"""A small corpus with duplicates of known similarity, and a way to clean it in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="needs the extra: pip install 'sproutlm[clean]'")

# 1,500 common characters: random strings of them share no run of five.
ALPHABET = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
SHINGLE = 5


def han(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(ALPHABET, k=length))


def near(text: str, similarity: float, rng: random.Random) -> str:
    """A text of the same length whose set of five-character runs has this Jaccard similarity with that of ``text``.

    It shares the beginning of m characters: m - 4 runs in common of 2 (n - 4) - (m - 4) in all.
    """
    runs = len(text) - SHINGLE + 1
    common = round(2 * runs * similarity / (1 + similarity))
    return text[: common + SHINGLE - 1] + han(rng, len(text) - common - SHINGLE + 1)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def cleaned(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``cleaned(source, "name", **sections)``: run the recipe into tmp_path/name; gives the report."""

    def run(source: Path | str, name: str = "out", **sections: Any) -> dict[str, Any]:
        from sproutlm.config.clean import CleanRecipe
        from sproutlm.data.clean.run import clean

        sources = sections.pop("sources", [{"path": str(source)}])
        sections.setdefault("executor", {"tasks": 1, "workers": 1})
        config = {"sources": sources, "out": str(tmp_path / name), "block_mb": 0.02, **sections}
        return clean(CleanRecipe.model_validate({"name": "test", "clean": config}), say=lambda line: None)

    return run


def output(folder: Path) -> dict[str, bytes]:
    """Every file that a person gets, by its name below ``folder``."""
    skipped = (folder / "work", folder / ".lock")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not any(path == one or one in path.parents for one in skipped)
    }


def kept_texts(folder: Path) -> list[str]:
    """The texts of clean/, in order, read through the data door as a training recipe would."""
    from sproutlm.config.data import SourceConfig
    from sproutlm.data.sources import Counts, read_records

    return [record.text for record in read_records([SourceConfig(path=str(folder / "clean"))], "error", Counts())]  # type: ignore[union-attr]


def rejected(folder: Path) -> list[dict[str, Any]]:
    from sproutlm.data.clean.work import read_rows

    return [row for path in sorted((folder / "rejects").rglob("*.jsonl.gz")) for row in read_rows(path)]
