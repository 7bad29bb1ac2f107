"""``sprout doctor``: what a path is, what is printed, what is written, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sproutlm.doctor import examine, print_report
from sproutlm.doctor.recognise import recognise
from sproutlm.errors import SproutError


def test_a_path_is_recognised_by_what_lies_in_it(
    run: Path, tokenizer_folder: Path, rows_file: Any, tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "stages.json").write_text("{}")
    for path, kind in {
        run: "run",
        run / "checkpoints": "checkpoints",
        run / "checkpoints" / "step-00000040": "checkpoint",
        run / "model": "huggingface",
        run / "data" / "train": "shards",
        run / "recipe.yaml": "recipe",
        tokenizer_folder: "tokenizer",
        tokenizer_folder / "tokenizer.json": "tokenizer",
        rows_file([{"text": "a"}]): "data",
        tmp_path / "*.jsonl": "data",
        tmp_path / "stages": "stages",
    }.items():
        assert recognise(path) == kind, path


def test_a_path_that_is_nothing_known_is_a_mistake_and_not_a_finding(tmp_path: Path, sprout: Any) -> None:
    (tmp_path / "a.exe").write_bytes(b"x")
    for name in ("a.exe", "nowhere.jsonl", "nowhere/*.jsonl"):
        with pytest.raises(SproutError, match=name.replace("*", r"\*")):
            recognise(tmp_path / name)
        ran = sprout("doctor", tmp_path / name)
        assert ran.code == 1 and ran.err.startswith("error: ")


def test_doctor_ends_with_2_where_a_check_fails_and_writes_its_json_all_the_same(
    rows_file: Any, tmp_path: Path, sprout: Any
) -> None:
    bad = rows_file([{"text": {"body": 1}}] * 3, "bad.jsonl")
    ran = sprout("doctor", bad, "--json", tmp_path / "report.json")
    assert ran.code == 2
    assert "FAIL  rows: 3 of 3 rows" in ran.out and "[pitfall 13]" in ran.out and "cure: " in ran.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False and report["counts"]["fail"] == 1
    first = report["examined"][0]
    assert (first["path"], first["kind"]) == (str(bad), "data file")
    assert set(first["findings"][0]) == {"check", "status", "what", "cure", "pitfall"}


def test_doctor_ends_with_0_where_nothing_fails(rows_file: Any, tokenizer_folder: Path, sprout: Any) -> None:
    ran = sprout("doctor", rows_file([{"text": f"the hill {i}"} for i in range(9)]), tokenizer_folder)
    assert ran.code == 0, ran.out
    assert ran.out.rstrip().endswith("0 failed, 0 warnings, " + ran.out.rstrip().rsplit(" ", 2)[1] + " ok")


def test_a_warning_is_no_failure(rows_file: Any) -> None:
    report = examine([rows_file([{"text": f"the hill {i % 3}"} for i in range(9)])])
    said: list[str] = []
    assert report["counts"]["warn"] == 1 and print_report(report, said.append)
    findings = [line.split()[0] for line in said if line.startswith("  ") and not line.startswith("  note")]
    assert findings[:2] == ["warn", "cure:"]  # what is wrong stands first


def test_data_is_judged_with_the_tokenizer_and_row_length_given_beside_it(run: Path, rows_file: Any) -> None:
    data = rows_file([{"text": f"the river and the hill {i}"} for i in range(9)])
    examined = examine([data, run])["examined"]
    sentence = next(f["what"] for f in examined[0]["findings"] if f["check"] == "long records")
    assert "more than 64 tokens;" in sentence  # the run's seq_len; alone it would be the default's
    assert not [note for note in examined[0]["notes"] if "throw-away" in note]


def test_the_stages_of_a_pipeline_are_examined_one_by_one(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "stages.json").write_text("{}")
    run.rename(whole / "pretrain")
    examined = examine([whole])["examined"]
    assert [one["kind"] for one in examined] == ["run folder", "checkpoint", "Hugging Face folder"]
