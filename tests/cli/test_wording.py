"""Cures in words of the command line name options, not recipe keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sproutlm.cli import main
from sproutlm.cli.data.wording import as_options


@pytest.mark.parametrize(
    ("sentence", "options"),
    [
        ("mend the row, or set on_bad_row: skip", "mend the row, or add --on-bad-row skip"),
        ("there is no 'text'; set columns: {text: body}", "there is no 'text'; add --columns text=body"),
        ("set encoding: gb18030, or convert", "add --encoding gb18030, or convert"),
        ("for example format: labelled, columns: {label: n, text: body}. labelled needs",
         "for example --format labelled --columns label=n --columns text=body. labelled needs"),
        ("or set role_order: any on the source to take", "or add --role-order any to take"),
        ("to put text there, set fill: {name: TEXT} on the source", "to put text there, add --fill name=TEXT"),
        ("set format: mixed to read each row, or format: text to read", "add --format mixed to read each row, or --format text to read"),
    ],
)  # fmt: skip
def test_recipe_keys_become_options(sentence, options):
    assert as_options(sentence) == options


def test_what_a_verb_advises_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a"}, {"body": "b"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert = ["data", "convert", "rows.jsonl", "o.csv", "--to", "text"]
    assert main(convert) == 1
    said = capsys.readouterr().err
    assert "rows.jsonl:2: there is no 'text'" in said and said.rstrip().endswith("or add --on-bad-row skip")
    assert main([*convert, "--on-bad-row", "skip"]) == 0
