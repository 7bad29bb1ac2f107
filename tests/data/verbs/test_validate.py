"""Each kind of bad input is one line: how many rows, the first file:line, and the cure; and skipping it loses no other row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sproutlm.data import raw_rows
from sproutlm.data.verbs.convert import convert
from sproutlm.data.verbs.validate import validate

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def found(report, which="faults", source=0):
    return {line["kind"]: line for line in report["inputs"][source][which]}


def one_fault(path, given, **fields):
    """The only fault of a file, which must have a place and a cure."""
    report = validate([given(path, **fields)])
    faults = found(report)
    assert not report["ok"] and len(faults) == 1, faults
    fault = next(iter(faults.values()))
    assert "\n" not in fault["first"] and str(path) in fault["first"]
    assert fault["cure"] or "; " in fault["first"]
    return fault


def test_good_rows_are_good(write, given):
    report = validate([given(write([GOOD, chat(("user", "x"), ("assistant", "y"))]))])
    assert report["ok"] and report["inputs"][0]["format"] == "messages"
    assert report["inputs"][0]["counts"]["records_out"] == 2 and not found(report, "notes")


# --- the bad inputs of the plan -----------------------------------------------------------------------------------------

EMPTY_TURN = chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c"))
BAD = {
    "empty content": ([GOOD, EMPTY_TURN], 2, "is empty"),
    "mixed schemas": ([GOOD, GOOD, {"instruction": "q", "output": "a"}], 3, "looks like instruction"),
    "roles out of order": ([GOOD, chat(("user", "a"), ("user", "b"), ("assistant", "c"))], 2, "user"),
    "an assistant first": ([GOOD, chat(("assistant", "hello"), ("user", "b"), ("assistant", "c"))], 2, "assistant"),
    "an unknown role": ([GOOD, chat(("user", "a"), ("assisstant", "b"))], 2, "did you mean assistant"),
    "a system message in the middle": ([GOOD, chat(("user", "a"), ("system", "s"), ("assistant", "b"))], 2, "system"),
    "no assistant": ([GOOD, chat(("user", "a"))], 2, "assistant"),
    "content of another type": ([GOOD, chat(("user", "a"), ("assistant", 5))], 2, "not a string"),
    "half a character": ([{"text": "a"}, {"text": "\ud83d"}], 2, "surrogate"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_with_its_line_and_left_out_by_skip(name, write, given, tmp_path, read):
    rows, line, said = BAD[name]
    path = write([*rows, rows[0]])
    fault = one_fault(path, given)
    assert fault["rows"] == 1 and fault["first"].startswith(f"{path}:{line}: ") and said in fault["first"]
    counts = convert(given(path, "skip"), tmp_path / "o.jsonl", to="text" if "text" in rows[0] else "messages")[
        "counts"
    ]
    assert counts["rows_in"] == len(rows) + 1 and counts["records_out"] == len(rows)
    assert list(counts["dropped"].values()) == [1] and counts["examples"][0].startswith(f"{path}:{line}: ")
    assert len(read(tmp_path / "o.jsonl")) == len(rows)


def test_an_empty_answer_is_left_out_and_noted(write, given):
    path = write([GOOD, chat(("user", "a"), ("assistant", " ")), {"messages": []}])
    report = validate([given(path)])
    notes = found(report, "notes")
    assert report["ok"] and notes["empty"]["rows"] == 2 and notes["empty"]["first"].startswith(f"{path}:2: ")


def test_an_empty_turn_is_noted_where_conversations_are_taken_as_they_come(write, given):
    path = write([GOOD, EMPTY_TURN])
    report = validate([given(path, role_order="any")])
    assert found(report, "notes")["empty turn"]["first"] == f"{path}:2: message 2 (assistant) says nothing"


def test_bytes_that_are_not_utf8(tmp_path, given):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "春"}\n{"text": "'.encode() + b'\xff\xfe"}\n{"text": "b"}\n')
    fault = one_fault(path, given)
    assert fault["kind"] == "not decodable" and fault["rows"] == 1 and f"{path}:2: byte 0xFF" in fault["first"]
    assert "--encoding" in fault["cure"]
    path.write_bytes('{"text": "春眠不觉晓"}\n'.encode("gb18030"))
    fault = one_fault(path, given)
    assert fault["kind"] == "cannot be read" and "set encoding: gb18030" in fault["first"]
    assert validate([given(path, encoding="gb18030")])["ok"]


def test_a_line_beyond_the_limit_is_one_bad_row(tmp_path, given, monkeypatch, read):
    monkeypatch.setattr(raw_rows, "ROW_LIMIT", 1000)
    for suffix, rows in {
        "jsonl": ['{"text": "one"}', '{"text": "%s"}' % ("a" * 5000), '{"text": "two"}'],
        "tsv": ["text\tn", "one\t1", "a" * 5000 + "\t2", "two\t3"],
    }.items():
        path = tmp_path / f"a.{suffix}"
        path.write_text("\n".join(rows))
        fault = one_fault(path, given)
        assert "a line of 5,0" in fault["first"] and "1,000 are read at most" in fault["first"]
        counts = convert(given(path, "skip"), tmp_path / f"{suffix}.json")["counts"]
        assert counts["rows_in"] == 3 and [row["text"] for row in read(tmp_path / f"{suffix}.json")] == ["one", "two"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.slow
def test_a_line_of_300_megabytes_takes_neither_long_nor_much_memory(tmp_path):
    path = tmp_path / "big.jsonl"
    with open(path, "w") as file:
        file.write('{"text": "one"}\n{"text": "')
        for _ in range(300):
            file.write("a" * 1_000_000)
        file.write('"}\n{"text": "two"}\n')
    source = str(Path(raw_rows.__file__).resolve().parents[2])
    code = (
        f"import sys; sys.path.insert(0, {source!r}); from sproutlm.cli import main; code = main(sys.argv[1:])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "data", "validate", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "a line of 300,000,013 characters" in done.stdout, done.stderr
    assert "3 rows, 2 usable" in done.stdout
    assert int(done.stdout.split()[-1]) < 400_000  # KiB at the peak; measured: 180,000


def test_a_parquet_with_the_wrong_column(tmp_path, given):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", "b"]}), path)
    fault = one_fault(path, given)
    assert fault["kind"] == "format not known" and "the columns body" in fault["first"]
    fault = one_fault(path, given, format="text", columns={"text": "boddy"})
    assert fault["rows"] == 2 and f"{path}:1: " in fault["first"] and "body" in fault["first"]
    assert validate([given(path, columns={"text": "body"})])["ok"]


def test_a_label_that_only_the_test_part_has(write, given):
    train = write([{"text": f"t{i}", "label": i % 2} for i in range(6)], "train.jsonl")
    test = write([{"text": "x", "label": 0}, {"text": "y", "label": 2}, {"text": "z", "label": 2}], "test.jsonl")
    report = validate([given(train), given(test)])
    fault = found(report, source=1)["label not trained"]
    assert not report["ok"] and fault["rows"] == 2
    assert fault["first"] == f"{test}:2: the label '2' is in no row of {train}" and "--stratify" in fault["cure"]
    assert validate([given(test), given(train)])["ok"] is False  # 1 is not in the first, either


def test_rows_that_are_in_two_parts_are_noted(write, given):
    train = write([{"text": "Same  text"}, {"text": "other"}], "train.jsonl")
    test = write([{"text": "new"}, {"text": "same text "}], "test.jsonl")
    note = found(validate([given(train), given(test)]), "notes", 1)["in two parts"]
    assert note["rows"] == 1 and note["first"].startswith(f"{test}:2: ")


# --- the rest -----------------------------------------------------------------------------------------------------------


def test_duplicates_are_counted_over_files_with_the_place_of_both(tmp_path, given):
    for name, texts in (("a", ["x", "y"]), ("b", ["z", "x", "x"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    note = found(validate([given(tmp_path)]), "notes")["duplicates"]
    assert note["rows"] == 2
    assert note["first"] == f"{tmp_path / 'b.jsonl'}:2: the same row as {tmp_path / 'a.jsonl'}:1"


def test_a_broken_file_does_not_hide_the_others(tmp_path, given):
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": ')
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": 1}\n')
    report = validate([given(tmp_path)])
    faults = found(report)
    assert "a.json:1" in faults["cannot be read"]["first"] and "b.jsonl:2" in faults["text is not a string"]["first"]
    assert report["inputs"][0]["counts"]["records_out"] == 1


def test_kinds_of_fault_are_bounded(write, given):
    rows = [{"text": "a"}] * 40 + [chat(("user", "a"), (f"role {i}", "b")) for i in range(60)]
    report = validate([given(write(rows), format="mixed")])
    assert len(report["inputs"][0]["faults"]) <= 51
    assert sum(line["rows"] for line in report["inputs"][0]["faults"]) == 60


def test_lost_characters_and_the_mark_are_noted(tmp_path, given):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\ufffd"}\n', encoding="utf-8-sig")
    notes = found(validate([given(path)]), "notes")
    assert notes["lost characters"]["first"].startswith(f"{path}:1: ") and "byte-order mark" in notes


GOOD_FILES = {
    "pretrain/c4_en.jsonl": 300, "pretrain/shakespeare_en.txt": 7222, "pretrain/wiki_en.txt": None,
    "sft/gsm8k_train.jsonl.gz": 7473, "sft/identity.jsonl": 91, "preference/dpo_zh.jsonl": 300,
    "preference/dpo_en.jsonl": 300, "preference/instruction_pairs_en.jsonl": 1100,
    "classification/sms_spam.tsv": 5574, "classification/hotel_reviews_zh.csv": 7766,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_FILES)
def test_real_files_are_good(name, shared, given):
    report = validate([given(shared(name))])
    assert report["ok"], report
    rows = report["inputs"][0]["counts"]["rows_in"]
    assert rows == (GOOD_FILES[name] or rows)


def test_real_files_with_faults_say_which(shared, given):
    fault = one_fault(shared("pretrain/equations_nested_text.jsonl"), given)
    assert fault["rows"] == 3000 and "text.prompt" in fault["first"]
    fault = one_fault(shared("sft/toolcall_zh_sharegpt.jsonl"), given)
    assert fault["rows"] == 2 and ":198: " in fault["first"]


def test_real_placeholders_are_noted_until_they_are_filled(shared, given):
    source = shared("sft/identity.jsonl")
    assert found(validate([given(source)]), "notes")["placeholder not filled"]["rows"] == 85
    filled = validate([given(source, fill={"name": "Sprout", "author": "us"})])
    assert "placeholder not filled" not in found(filled, "notes")


def test_multiple_choice_tables_are_read_with_their_columns(shared, given):
    columns = {"prompt": "Question", "completion": "Answer"}
    folder = shared("eval/cmmlu/dev")
    report = validate([given(f"{folder}/*.csv", format="prompt_completion", columns=columns)])
    assert report["ok"] and report["inputs"][0]["counts"]["rows_in"] == 50


def test_what_only_parquet_has_beside_the_text_is_no_fault(tmp_path, given):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {
        "text": ["a", "a", "b"],
        "picture": [b"1", b"1", b"2"],
        "at": pyarrow.array([1, 1, 2], pyarrow.timestamp("s")),
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    report = validate([given(tmp_path / "a.parquet")])
    assert report["ok"] and report["inputs"][0]["counts"]["records_out"] == 3
    assert [(note["kind"], note["rows"]) for note in report["inputs"][0]["notes"]] == [("duplicates", 1)]


def test_files_of_a_folder_that_are_passed_over_are_counted(tmp_path, given):
    for name in ("a.txt", "b.txt", "notes.md"):
        (tmp_path / name).write_text(f"text of {name}")
    assert validate([given(tmp_path)])["inputs"][0]["counts"]["ignored_files"] == 1


def test_where_no_row_can_be_read_the_first_one_is_told(write, given):
    path = write([])
    path.write_text('{"text": "a"},\n{"text": "b"},\n')
    (fault,) = validate([given(path)])["inputs"][0]["faults"]
    assert fault["first"].startswith(f"{path}:1: not JSON") and "comma" in fault["first"]
