"""The pages on data and models of one's own, and on training, are true: every command on them is run, in order, on files of those names.

The files are small stand-ins, so that their epochs are short; the quickstart alone, whose steps are fixed, gets settings
appended that cut it down. A page that names a wrong file, option, verb or order fails here.
"""

from __future__ import annotations

import io
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_docs import blocks, commands

QUICK = (
    "stages.world.size=tiny",
    "stages.tokenizer.tokenizer.vocab_size=400",
    "stages.pretrain.recipe.train.steps=2",
    "stages.sft.recipe.train.steps=2",
    "stages.evaluate.max_questions=2",
)


def stand_ins(folder: Path) -> None:
    """Files of the names that the page uses; each in the shape that the page says."""
    draw = random.Random(3)
    words = "the river bent low and old boats went home before rain while children sang on stone steps".split()
    sentences = [" ".join(draw.choices(words, k=draw.randint(8, 30))).capitalize() + "." for _ in range(200)]

    def text(name: str, some: list[str]) -> None:
        (folder / name).write_text("\n\n".join(some) + "\n", encoding="utf-8")

    def lines(name: str, rows: list[Any]) -> None:
        (folder / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")

    text("novel.txt", sentences[:150])
    text("other-novel.txt", sentences[150:])
    chats = [
        [
            {"role": "user", "content": f"第{i}题：{i}加{i + 1}？"},
            {"role": "assistant", "content": f"等于{2 * i + 1}。"},
        ]
        for i in range(120)
    ]
    lines("chats.jsonl", [{"messages": chat} for chat in chats])
    table = "问题,回答\n" + "".join(f"编号{i}是什么,是第{i}个\n" for i in range(30))
    (folder / "faq.csv").write_bytes(table.encode("gb18030"))
    lines("forum.jsonl", [{"post": {"title": f"How high is hill {i}?", "reply": f"{i} metres."}} for i in range(60)])
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    turns = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "reasoning_content": "A sum.", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    tools = [{"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}]
    lines("calls.jsonl", [{"messages": turns, "tools": json.dumps(tools)}] * 10)
    lines("identity.jsonl", [{"instruction": f"Who? {i}", "output": "I am {{name}}, by {{author}}."} for i in range(9)])
    spam = "".join(f"{'ham' if i % 4 else 'spam'}\tmessage number {i} with its own words\n" for i in range(80))
    (folder / "spam.tsv").write_text("\ufeff" + spam, encoding="utf-8")
    pages = [
        f"{sentence} It is the year {1900 + i}, and the people of the town are well."
        for i, sentence in enumerate(sentences)
    ]
    lines(
        "web.jsonl",
        [{"text": text} for text in [*pages, *pages[:20], "短", "Call me: jo@example.org, please, my friends."]],
    )
    lines("exam.jsonl", [{"text": pages[5]}])


def shortened(arguments: list[str]) -> list[str]:
    """The command, with settings that cut a quickstart down."""
    return [*arguments, *QUICK] if arguments[0] == "quickstart" and "--dry-run" not in arguments else arguments


@pytest.mark.parametrize(
    "page",
    [
        "docs/own-data.md",
        "docs/models.md",
        "docs/train-faster.md",
        "docs/does-not-fit.md",
        "docs/healthy-run.md",
        pytest.param("docs/many-gpus.md", marks=pytest.mark.slow),  # starts fresh interpreters
        "docs/when-it-breaks.md",
    ],
)
def test_every_command_of_the_page_runs_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprout: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins(tmp_path)
    for block in blocks(page):
        if block.language == "yaml" and block.file_name:
            (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
    ran = 0
    for program, *arguments in commands(page):
        if program in ("rm", "mv"):
            subprocess.run([program, *arguments], cwd=tmp_path, check=True)
        if Path(program).name != "sprout":
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n"))  # what a person says in a chat
        found = sprout(*shortened(arguments))
        assert found.code == 0, f"{page}: sprout {shlex.join(arguments)}: {found.err[-2000:]}"
        assert "Traceback" not in found.err
        ran += 1
    assert ran >= 5
