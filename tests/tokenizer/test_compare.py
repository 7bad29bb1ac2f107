"""Comparing tokenizers: the figures are what a person would count, and each line goes to its language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sproutlm.tokenizer import Tokenizer, train_tokenizer
from sproutlm.tokenizer.compare import by_language, compare, figures, language


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("春眠不觉晓，处处闻啼鸟。", "zh"),
        ("用 Python 写一个程序", "zh"),
        ("The quick brown fox, isn't it?", "en"),
        ("Où est le café d'été ?", "en"),
        ("def add(a, b): return a[0] + b", "code"),
        ("    for (i = 0; i < n; i++) {", "code"),
        ("12 + 30 = 42", "digits"),
        ("2025-12-31, 3.14", "digits"),
        ("в начале было слово", "other"),
        ("はじめまして", "other"),
        ("", "other"),
    ],
)
def test_a_line_goes_to_its_language(line: str, name: str) -> None:
    assert language(line) == name


def test_no_line_is_lost_and_code_keeps_its_indented_lines() -> None:
    text = "def f(x):\n    return x\n\n春眠不觉晓\nplain words here\n"
    parts = by_language([text, "1 + 1 = 2"])
    assert parts == {
        "code": "def f(x):\n    return x\n\n", "zh": "春眠不觉晓\n", "en": "plain words here\n", "digits": "1 + 1 = 2\n",
    }  # fmt: skip


def test_figures_are_counts_over_counts(tokenizer: Tokenizer) -> None:
    text = "the fox jumps\n春眠🦊\n"
    ids = tokenizer.encode(text)
    found = figures(tokenizer, text)
    assert found["tokens"] == len(ids)
    assert found["bytes_per_token"] == len(text.encode()) / len(ids)
    assert found["tokens_per_word"] == len(ids) / 4
    assert found["tokens_per_character"] == len(ids) / len("thefoxjumps春眠🦊")
    # The fox is in no vocabulary: its four bytes are four tokens.
    alone = figures(tokenizer, "🦊")
    assert alone["broken_share"] == 1.0
    assert figures(tokenizer, "the fox")["broken_share"] == 0


def test_a_tokenizer_shares_all_with_itself_and_some_with_others(tokenizer: Tokenizer) -> None:
    other = train_tokenizer(["quite other words, and none of these"] * 10, 330)
    texts = {"en": "the fox jumps over the lazy dog\n" * 50}
    report = compare([("a", tokenizer), ("b", tokenizer), ("c", other)], texts, rounds=3)
    shares = {tuple(pair["of"]): pair["share"] for pair in report["overlap"]}
    assert shares["a", "b"] == 1
    assert 0.3 < shares["a", "c"] == shares["b", "c"] < 1  # both hold the 256 bytes
    a, b, c = report["tokenizers"]
    assert a["languages"] == b["languages"] != c["languages"]
    assert a["encode_ratio"] == a["decode_ratio"] == 1
    assert c["languages"]["en"]["bytes_per_token"] < a["languages"]["en"]["bytes_per_token"]


def test_compare_writes_figures_and_a_plot(folder: Path, tmp_path: Path, sprout: Any) -> None:
    train_tokenizer(["other words"] * 9, 300).save(tmp_path / "b")
    (tmp_path / "text.txt").write_text("the fox\n春眠不觉晓\n", "utf-8")
    (tmp_path / "code.py").write_text("def f(x):\n    return [x, {1: 2}]\n", "utf-8")
    data = ("--data", tmp_path / "text.txt", "--data", tmp_path / "code.py")
    files = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    ran = sprout("tokenizer", "compare", folder, tmp_path / "b", *data, *files)
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert set(report["bytes"]) == {"zh", "en", "code"}
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "bytes per token" in ran.out
    for arguments, words in (
        ((folder, *data), "two or more"),
        ((folder, folder, *data, "--plot", tmp_path / "r.txt"), "suffix"),
        ((folder, tmp_path / "none", *data), "no such folder"),
    ):
        ran = sprout("tokenizer", "compare", *arguments)
        assert ran.code == 1
        assert words in ran.err
