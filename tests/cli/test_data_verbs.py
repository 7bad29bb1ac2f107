"""``sprout data validate | convert | split | sample | mix | balance``: what a person types, sees and gets as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sproutlm.cli import main

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"text {i}", "label": "a" if i % 4 else "b", "n": i} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def sprout(capsys, *words) -> tuple[int, str, str]:
    code = main(["data", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def lines(path) -> list:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def report(path="r.json") -> dict:
    found = json.loads(Path(path).read_text())
    counts = found["counts"]
    assert counts["rows_in"] == counts["records_out"] + sum(counts["dropped"].values())
    return found


def test_validate_ends_with_0_or_2_and_one_line_for_each_kind(capsys, here):
    code, out, _ = sprout(capsys, "validate", "rows.jsonl")
    assert code == 0 and "labelled, 40 rows, 40 usable" in out and "labels: a 30, b 10" in out
    (here / "bad.jsonl").write_text('{"text": "a"}\n{"text": 1}\n{oops\n{"text": 2}\n')
    code, out, err = sprout(capsys, "validate", "bad.jsonl", "--json", "r.json")
    assert code == 2 and "Traceback" not in err
    faults = [line for line in out.splitlines() if "FAULT" in line]
    assert len(faults) == 2 and "2 rows, first at bad.jsonl:2: text is a number (1)" in faults[0]
    assert "1 row at bad.jsonl:3: not JSON" in faults[1]
    found = json.loads((here / "r.json").read_text())
    assert found["ok"] is False and [f["rows"] for f in found["inputs"][0]["faults"]] == [2, 1]


def test_convert_says_what_became_of_the_rows(capsys):
    code, out, _ = sprout(capsys, "convert", "rows.jsonl", "rows.csv", "--json", "r.json")
    assert code == 0 and "40 rows read, 40 kept" in out and "hold JSON" in out
    assert report()["out"] == "rows.csv" and Path("rows.csv").read_text().startswith("text,label,n:json\n")
    code, _, err = sprout(capsys, "convert", "rows.jsonl", "rows.csv")
    assert code == 1 and "--force" in err
    assert sprout(capsys, "convert", "rows.jsonl", "rows.csv", "--force")[0] == 0


def test_convert_to_a_schema_fills_placeholders_and_maps_columns(capsys, here):
    (here / "a.csv").write_text("ask,reply\nWho?,{{name}}!\n")
    words = [
        "--to",
        "messages",
        "--format",
        "prompt_completion",
        "--columns",
        "prompt=ask",
        "--columns",
        "completion=reply",
    ]
    code, _, err = sprout(capsys, "convert", "a.csv", "m.jsonl", *words, "--fill", "name=Sprout")
    assert code == 0, err
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Sprout!"}]
    assert lines("m.jsonl") == [{"messages": turns}]


def test_a_bad_row_stops_with_its_place_and_skip_goes_on(capsys, here):
    (here / "bad.jsonl").write_text('{"text": "a"}\n{oops\n')
    code, _, err = sprout(capsys, "convert", "bad.jsonl", "o.json")
    assert code == 1 and err.startswith("error: bad.jsonl:2: not JSON") and not Path("o.json").exists()
    code, out, _ = sprout(capsys, "convert", "bad.jsonl", "o.json", "--on-bad-row", "skip", "--json", "r.json")
    assert code == 0 and "1 rows dropped (not JSON 1)" in out and report()["counts"]["rows_in"] == 2


def test_split_into_a_folder_keeps_the_kind_of_file(capsys):
    code, out, _ = sprout(capsys, "split", "rows.jsonl", "parts", "--stratify", "--seed", 3, "--json", "r.json")
    assert code == 0 and "parts/train.jsonl: 32 rows (80.0% asked)" in out
    assert [len(lines(f"parts/{name}.jsonl")) for name in ("train", "validation", "test")] == [32, 4, 4]
    assert report()["labels"] == {"a": [24, 3, 3], "b": [8, 1, 1]}


def test_split_into_named_files_or_names(capsys):
    assert sprout(capsys, "split", "rows.jsonl", "a.jsonl", "b.csv", "--parts", "3,1")[0] == 0
    assert len(lines("a.jsonl")) == 30 and len(Path("b.csv").read_text().splitlines()) == 11
    assert sprout(capsys, "split", "rows.jsonl", "p", "--parts", "0.5,0.5", "--names", "left,right")[0] == 0
    assert len(lines("p/left.jsonl")) == len(lines("p/right.jsonl")) == 20
    code, _, err = sprout(capsys, "split", "rows.jsonl", "q", "--parts", "0.5,many")
    assert code == 1 and "numbers with commas" in err
    code, _, err = sprout(capsys, "split", "rows.jsonl", "q", "--parts", "0.5,0.5", "--names", "one")
    assert code == 1 and "2 shares for 1 parts" in err and not Path("q").exists()


def test_sample_by_rows_and_bytes(capsys):
    code, out, _ = sprout(capsys, "sample", "rows.jsonl", "s.jsonl", "--rows", 7, "--seed", 1, "--json", "r.json")
    assert code == 0 and "s.jsonl: 7 rows" in out and len(lines("s.jsonl")) == 7
    assert report()["counts"]["dropped"] == {"not sampled": 33}
    assert sprout(capsys, "sample", "rows.jsonl", "m.jsonl", "--mb", "0.0005")[0] == 0
    assert 400 < Path("m.jsonl").stat().st_size < 600
    code, _, err = sprout(capsys, "sample", "rows.jsonl", "x.jsonl")
    assert code == 1 and "--rows N" in err


def test_mix_shows_asked_and_achieved(capsys, here):
    (here / "other.jsonl").write_text("".join(json.dumps({"text": f"o{i}", "label": "c"}) + "\n" for i in range(40)))
    words = ["mix.jsonl", "rows.jsonl=0.25", "other.jsonl=0.75", "--mb", "0.002", "--json", "r.json"]
    code, out, _ = sprout(capsys, "mix", *words)
    assert code == 0 and "(25.00% asked)" in out and "shares are of bytes" in out and "repeats" in out
    assert abs(report()["sources"][0]["share"] - 0.25) < 0.03
    code, _, err = sprout(capsys, "mix", *words[:5], "--force", "--no-repeat")
    assert code == 1 and "other.jsonl: holds 40 rows" in err
    code, _, err = sprout(capsys, "mix", "m.jsonl", "rows.jsonl", "other.jsonl=0.5")
    assert code == 1 and "such as a.jsonl=0.7" in err


def test_balance_shows_before_and_after(capsys):
    code, out, _ = sprout(capsys, "balance", "rows.jsonl", "b.jsonl", "--to", "min", "--json", "r.json")
    assert code == 0 and "a: 30 rows before, 10 after" in out and "b: 10 rows before, 10 after" in out
    assert report()["labels"]["a"] == {"before": 30, "after": 10} and len(lines("b.jsonl")) == 20


@pytest.mark.parametrize("verb", ["validate", "convert", "split", "sample", "mix", "balance"])
def test_help_is_there_and_names_a_wrong_option(verb, capsys):
    code, out, _ = sprout(capsys, verb, "--help")
    assert code == 0 and "--json" in out and "--columns" in out
    assert sprout(capsys, verb, "--nonsense")[0] == 1
    code, _, err = sprout(
        capsys, verb, *(["rows.jsonl", "o.jsonl"] if verb != "validate" else ["rows.jsonl"]), "--columns", "x"
    )
    assert code == 1 and err.startswith("error: ")


def test_an_interrupted_conversion_leaves_nothing(here):
    """Ctrl-C in the middle: no output, no temporary file."""
    import signal

    with open(here / "many.jsonl", "w") as file:
        for i in range(400_000):
            file.write(f'{{"text": "text {i}"}}\n')
    # A test run in the background of a shell is born with Ctrl-C ignored, and its children with it.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); from sproutlm.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"{heard}; {code}", "data", "convert", "many.jsonl", "o.json"]
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(here.glob(".o.json.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not list(here.glob("*o.json*")) and not list(here.glob(".*"))
