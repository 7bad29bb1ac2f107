"""Rows of every kind of file arrive whole, in order, and are all accounted for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from sproutlm.config.schema import SourceConfig
from sproutlm.data.readers import JsonStream
from sproutlm.data.records import Chat, Labelled, Message, Preference, Text
from sproutlm.data.sources import Counts, open_source, read_raw, read_records, read_rows, record_from
from sproutlm.errors import DataError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "data"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXTS = ["床前明月光，", "two\nlines", 'a "quoted", comma', "emoji 🌱"]


def records(path, on_bad_row="error", counts=None, **fields):
    counts = Counts() if counts is None else counts
    found = list(read_records([SourceConfig(path=str(path), **fields)], on_bad_row, counts))
    counts.check()
    return found


def texts(path, **fields):
    return [record.text for record in records(path, **fields)]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows):
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *[[i, row["text"]] for i, row in enumerate(rows)]])
    return out.getvalue()


ROWS = [{"text": text} for text in TEXTS]
FILES = {
    "a.jsonl": as_jsonl(ROWS),
    "a.ndjson": "\n" + as_jsonl(ROWS).replace("\n", "\n\n"),
    "a.json": json.dumps(ROWS, indent=2),
    "b.json": json.dumps(ROWS, ensure_ascii=False),
    "lines.json": as_jsonl(ROWS),
    "c.csv": as_csv(ROWS),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_plain_or_packed_gives_the_same_rows(tmp_path, name, packed):
    data = FILES[name].encode()
    if packed == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2  # two frames: a reader that stops after the first loses rows
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
    path = tmp_path / (name + packed)
    path.write_bytes(gzip.compress(data) if packed == ".gz" else data)
    assert texts(path) == TEXTS


def test_parquet_rows_are_read_in_batches(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [f"row {i}" for i in range(600)]
    parquet.write_table(arrow.table({"text": rows, "n": list(range(600))}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("auto", ["one\ntwo", "三"]),
        ("blank_line", ["one\ntwo", "三"]),
        ("line", ["one", "two", "三"]),
        ("none", ["one\ntwo\n\n　\n三"]),
    ],
)
def test_text_files_are_split_as_asked(tmp_path, split, expected):
    (tmp_path / "a.txt").write_text("\none\ntwo\n\n　\n三\n\n", encoding="utf-8")
    assert texts(tmp_path / "a.txt", columns={"split": split}) == expected
    assert [row.line for row in read_raw(SourceConfig(path=str(tmp_path / "a.txt")))] == [2, 6]


def test_a_text_file_without_blank_lines_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert texts(tmp_path / "a.txt") == ["one\ntwo"]


def test_a_folder_is_read_sorted_and_recursively_and_ignored_files_are_counted(tmp_path):
    for name, text in [("b.jsonl", "2"), ("sub/c.txt", "3"), ("a.txt", "1")]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_jsonl([{"text": text}]) if name.endswith("jsonl") else text)
    for name in ("LICENSE", "picture.png", ".hidden.txt"):
        (tmp_path / name).write_text("not data")
    counts = Counts()
    assert [r.text for r in records(tmp_path, counts=counts)] == ["1", "2", "3"]
    assert counts.ignored_files == 2
    assert any("2 files ignored" in line for line in counts.lines())
    assert texts(tmp_path / "*.jsonl") == ["2"]
    assert texts(tmp_path / "**" / "*.txt") == ["1", "3"]


def test_max_rows_stops_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_jsonl([{"text": str(i)} for i in range(9)]) + "broken")
    counts = Counts()
    assert len(records(tmp_path / "a.jsonl", counts=counts, max_rows=4)) == 4
    assert counts.rows_in == 4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.recursive(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.none()),
                          lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)  # fmt: skip
@example([0.0, 1e-7, -2e30], 1, None, False)
@example([0.0, 1e-7, -2e30], 2, 1, False)
def test_json_arrays_are_the_same_whatever_the_buffer(values, chunk, indent, ascii_only):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    stream = JsonStream(Path("x.json"), io.StringIO(text), chunk=chunk)
    assert stream.accept("[")
    found = []
    while not stream.accept("]"):
        line, source, value = stream.next_value()
        assert json.loads(source) == value
        assert text.splitlines()[line - 1].strip() if indent is None else True
        found.append(value)
        stream.accept(",")
    assert found == values
    assert stream.at_end()


def test_a_large_json_array_is_never_held_whole(tmp_path):
    """Pitfall 12: memory is bounded by one row, whatever the file's size."""
    path = tmp_path / "a.json"
    with open(path, "w") as out:
        out.write("[" + ",\n".join(json.dumps({"text": f"{i} " * 200}) for i in range(8000)) + "]")
    assert path.stat().st_size > 7e6
    tracemalloc.start()
    n = sum(1 for _ in read_raw(SourceConfig(path=str(path))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 8000
    assert peak < 2e6


def test_a_million_characters_in_one_row_are_read(tmp_path):
    long = "字a" * 500_000
    (tmp_path / "a.jsonl").write_text(as_jsonl([{"text": "short"}, {"text": long}]), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps([{"text": "short"}, {"text": long}]))
    (tmp_path / "a.csv").write_text(as_csv([{"text": "short"}, {"text": long}]), encoding="utf-8")
    (tmp_path / "a.tsv").write_text(f"id\ttext\n1\tshort\n2\t{long}\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text(f"short\n\n{long}\n", encoding="utf-8")
    for kind in ("jsonl", "json", "csv", "tsv", "txt"):
        assert texts(tmp_path / f"a.{kind}") == ["short", long], kind


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_crlf_and_lf_files_give_the_same_rows(tmp_path, kind):
    """Pitfall 12: line ends of Windows are line ends."""
    plain = {
        "txt": "a\nb\n\nc\n",
        "jsonl": as_jsonl(ROWS),
        "csv": "n,text\n1,a\n2,b\n",
        "tsv": "n\ttext\n1\ta\n2\tb\n",
    }[kind]
    (tmp_path / f"lf.{kind}").write_bytes(plain.encode())
    (tmp_path / f"crlf.{kind}").write_bytes(plain.replace("\n", "\r\n").encode())
    assert texts(tmp_path / f"crlf.{kind}") == texts(tmp_path / f"lf.{kind}")


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "tsv"])
def test_the_byte_order_mark_is_no_part_of_the_first_row(tmp_path, kind):
    body = {
        "txt": "甲",
        "jsonl": '{"text": "甲"}',
        "json": '[{"text": "甲"}]',
        "csv": "text,n\n甲,1",
        "tsv": "text\tn\n甲\t1",
    }[kind]
    (tmp_path / f"a.{kind}").write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert texts(tmp_path / f"a.{kind}") == ["甲"]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "big5"])
def test_other_encodings_are_read_when_named(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([{"text": "春眠不覺曉"}, {"text": "x"}]).encode(encoding))
    assert texts(tmp_path / "a.jsonl", encoding=encoding) == ["春眠不覺曉", "x"]


def test_utf16_with_its_byte_order_mark_needs_no_naming(tmp_path):
    (tmp_path / "a.txt").write_bytes("一\r\n\r\n二".encode("utf-16"))
    assert texts(tmp_path / "a.txt") == ["一", "二"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_without_a_header_gets_numbered_columns_and_loses_no_row(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffham\tI am here\nspam\tWIN now!!\nham\tok\n", encoding="utf-8")
    columns = {"label": "column_1", "text": "column_2"}
    found = records(tmp_path / "a.tsv", columns=columns)
    assert found == [Labelled("I am here", "ham"), Labelled("WIN now!!", "spam"), Labelled("ok", "ham")]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("label,review\n1,good\n", ["label", "review"]),
        (",Question,A,Answer\n0,how?,x,A\n", ["", "Question", "A", "Answer"]),
        ("first_name,age\nAnn,3\n", ["first_name", "age"]),
        ("标题,正文\n一,二\n", ["标题", "正文"]),
        ("ham,ok\nspam,no\nham,yes\n", ["column_1", "column_2"]),
        ("1,2\n3,4\n", ["column_1", "column_2"]),
        ("x,This is a sentence of a message.\ny,Another one.\n", ["column_1", "column_2"]),
    ],
)
def test_headers_are_told_from_data(tmp_path, text, names):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    first = next(read_raw(SourceConfig(path=str(tmp_path / "a.csv"))))
    assert list(first.payload) == names


def test_a_quote_in_a_tsv_swallows_no_rows(tmp_path):
    """Pitfall 13: read as csv, a line that begins with a quote would run on to the next quote."""
    (tmp_path / "a.tsv").write_text('label\ttext\nham\t"hello\nspam\twin\nham\t"he said ""hi"""\n')
    assert texts(tmp_path / "a.tsv") == ['"hello', "win", 'he said "hi"']


def test_csv_cells_may_hold_line_ends_and_rows_keep_their_line_numbers(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"a\nb",1\nc,2\n')
    assert [(r.line, r.payload["text"]) for r in read_raw(SourceConfig(path=str(tmp_path / "a.csv")))] == [
        (2, "a\nb"),
        (4, "c"),
    ]


# --- counting ---------------------------------------------------------------------------------------------------------


def test_rows_in_equal_records_out_plus_dropped_by_reason():
    """Pitfall 13: no row is lost without a word."""
    counts = Counts()
    found = records(FIXTURES / "mixed.jsonl", "skip", counts)
    assert found == [Text("第一行"), Text("last row")]
    assert counts.rows_in == 7
    assert counts.dropped == {"empty": 1, "not JSON": 1, "missing text": 1, "text is not a string": 2}
    assert counts.examples[0].startswith(f"{FIXTURES / 'mixed.jsonl'}:3: not JSON")
    with pytest.raises(AssertionError, match="1 of 8 rows"):
        Counts(rows_in=8, records_out=2, dropped=counts.dropped).check()


def test_counts_of_workers_add_up_and_survive_json():
    """Pitfall 13: preparing runs in several processes; their figures are summed."""
    source = SourceConfig(path=str(FIXTURES / "mixed.jsonl"))
    whole, parts = Counts(), []
    records(FIXTURES / "mixed.jsonl", "skip", whole)
    opened = open_source(source)
    for raw in opened.rows:
        own = Counts()
        record_from(raw, opened.door, "skip", own)
        parts.append(Counts.from_dict(json.loads(json.dumps(own.as_dict()))))
    merged = Counts()
    for part in parts:
        merged.merge(part)
    assert merged == whole


def test_a_record_dropped_later_is_moved_not_lost():
    counts = Counts(rows_in=2, records_out=2)
    counts.withdraw("too long", "a.jsonl:2: 900 tokens")
    counts.check()
    assert counts.records_out == 1 and counts.dropped == {"too long": 1}


def test_read_rows_gives_parsed_values_with_their_lines():
    counts = Counts()
    rows = list(read_rows(SourceConfig(path=str(FIXTURES / "mixed.jsonl")), "skip", counts))
    assert [(row.line, row.value) for row in rows[:2]] == [(1, {"text": "第一行"}), (2, {"text": "  "})]
    assert len(rows) == counts.rows_in - counts.dropped.total() == 6


def test_a_users_own_format_that_fails_is_a_bad_row_not_a_traceback(tmp_path, monkeypatch):
    (tmp_path / "failing_format_of_tests.py").write_text(
        "from sproutlm.data.formats import Format\nfrom sproutlm.data.records import Text\n"
        "f = Format('mine', lambda v: True, lambda v, columns: Text(v['a']) if 'a' in v else 3 if 'c' in v else v['b'])\n"
    )
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n{"z": 1}\n{"c": 1}\n')
    monkeypatch.chdir(tmp_path)
    counts = Counts()
    assert records("a.jsonl", "skip", counts, format="failing_format_of_tests:f") == [Text("x")]
    assert counts.dropped == {"mine failed": 2}
    with pytest.raises(DataError, match="a.jsonl:2: .*KeyError"):
        records("a.jsonl", format="failing_format_of_tests:f")


def test_formats_and_sources_import_nothing_heavy():
    code = "import sys, sproutlm.data.sources, sproutlm.data.formats; print([m for m in ('torch','transformers','pyarrow','zstandard','numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(FIXTURES.parents[2] / "src")},
    )
    assert done.stdout.strip() == "[]", done.stderr


# --- real files -------------------------------------------------------------------------------------------------------

REAL = [
    ("pretrain/tang_poems_zh.jsonl.gz", {}, Text, 54603, 0),
    ("pretrain/shakespeare_en.txt", {"columns": {"split": "none"}}, Text, 1, 0),
    ("pretrain/shakespeare_en.txt", {}, Text, 7222, 0),
    ("pretrain/c4_en.jsonl", {}, Text, 300, 0),
    ("pretrain/equations_nested_text.jsonl", {"columns": {"text": "text.prompt"}}, Text, 3000, 0),
    ("sft/alpaca_en.jsonl.gz", {}, Chat, 49974, 0),
    ("sft/alpaca_zh.jsonl.gz", {}, Chat, 19454, 0),
    ("sft/gsm8k_train.jsonl.gz", {}, Chat, 7473, 0),
    ("sft/identity.jsonl", {}, Chat, 91, 0),
    ("preference/dpo_zh.jsonl", {}, Preference, 300, 0),
    ("preference/dpo_en.jsonl", {}, Preference, 300, 0),
    ("preference/instruction_pairs_en.jsonl", {}, Preference, 1100, 0),
    ("classification/sms_spam.tsv", {"columns": {"label": "column_1", "text": "column_2"}}, Labelled, 5574, 0),
    ("classification/hotel_reviews_zh.csv", {}, Labelled, 7766, 1),
    ("eval/cmmlu/dev", {"columns": {"question": "Question", "answer": "Answer"}}, Chat, 50, 0),
]


@pytest.mark.parametrize(("name", "fields", "kind", "rows", "empty"), REAL)
def test_real_files_are_read_whole_and_counted(name, fields, kind, rows, empty):
    """Pitfall 13: every row of a real file is a record or counted as dropped."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data {name} is not here")
    counts = Counts()
    assert all(
        type(record) is kind for record in read_records([SourceConfig(path=str(path), **fields)], "error", counts)
    )
    counts.check()
    assert (counts.rows_in, counts.dropped["empty"]) == (rows, empty)


def test_preference_prompts_of_real_rankings_keep_all_their_turns():
    path = SHARED / "preference" / "dpo_zh.jsonl"
    if not path.exists():
        pytest.skip("real data dpo_zh.jsonl is not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, record in zip(rows, records(path), strict=True):
        assert [m.content for m in record.prompt] == [turn["value"] for turn in row["conversations"]]
        assert record.chosen == (Message("assistant", row["chosen"]["value"]),)
