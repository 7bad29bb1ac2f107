"""Conversion loses nothing: every value, type, key and its order comes back from every container, or the row is refused."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given as cases, settings, strategies as st

from sproutlm.config.data import SourceConfig
from sproutlm.data.verbs.convert import convert
from sproutlm.data.verbs.rows import Input
from sproutlm.errors import DataError

CONTAINERS = ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst", "tsv.gz", "json.gz"]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "schemas"


def same(one, other) -> bool:
    """Equal with types and the order of keys: 1, 1.0, True and "1" differ, and so do null and a missing key."""
    return json.dumps(one) == json.dumps(other)


def there_and_back(path: Path, suffix: str, read, given) -> None:
    out, back = path.with_name(f"out.{suffix}"), path.with_name(f"back-{suffix}.jsonl")
    report = convert(given(path), out, force=True)
    convert(given(out), back, force=True)
    went, came = read(path), read(back)
    assert report["counts"]["rows_in"] == report["counts"]["records_out"] == len(went) == len(came)
    for row, again in zip(went, came, strict=True):
        assert same(row, again), (suffix, row, again)


TRICKY = [
    {"text": "1", "label": 1},
    {"text": "", "label": "1", "x": None},
    {"text": "007", "label": 1.0},
    {"text": 'a "quoted", cell\r\nwith\tall', "label": True},
    {"text": " blanks ", "label": 10**30, "meta": {"b": [1, None, {"c": ""}], "a": {}}},
    {"label": -0.0, "text": "keys in another order"},
    {},
    ["a", "bare", {"list": []}],
    "a bare string",
    7,
    {"text": "\ud83d", "label": None},
    {"text": "\ufeff春眠不觉晓\u2028\x00\x1c", "": "nameless", ":json": "mark", 'odd "name"\n': 1, " n ": "x"},
]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_tricky_rows_come_back_as_they_were(suffix, write, read, given):
    there_and_back(write(TRICKY), suffix, read, given)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    "rows",
    [
        [{"a": ""}, {"a": "x"}],  # a tsv line with nothing on it is no row
        [{"名": "x", "b": "x"}, {"名": "名", "b": "b"}],  # a cell that repeats its column's name
        [{"1": "2", "3": "4"}],  # a header that looks like data
        [{"text:json": "not json", "text": "a"}],
        [{"a": '"x ""y"""', "text": '"'}],  # what a csv writer would have written, in a tsv
        [{"text": "\ufeff"}, {"text": "\r"}],
        [{"b": 1, "c": "x"}, {"a": "new first", "b": 2, "c": "y"}, {"b": 3, "z": [], "c": ""}],
        [{f"key{i}": i} for i in range(1100)],  # more columns than are made
        [{"n": [1, 2]}, {"n": []}, {"n": None}],
        [{"n": [1, 2.0]}],
        [{"n": {"a": 1}}, {"n": {"b": 1}}],
        [{"n": [{"a": None}, {"a": "x"}]}, {"n": [None]}],
        [{"n": 2**63}, {"n": -(2**63)}],
        [{"n": float("nan")}, {"n": float("inf")}, {"n": 1e-300}],
    ],
)
def test_small_tables_come_back_as_they_were(suffix, rows, write, read, given):
    there_and_back(write(rows), suffix, read, given)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@cases(rows=st.lists(json_values | st.dictionaries(st.sampled_from("abc"), json_values), min_size=1, max_size=6))
def test_any_rows_come_back_as_they_were(rows, tmp_path, read, given):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for suffix in ("json", "csv", "tsv", "parquet"):
        there_and_back(path, suffix, read, given)


def test_a_table_of_plain_strings_is_written_like_any_table(write, given, tmp_path):
    path = write([{"text": "a, b", "label": "1"}, {"text": "c", "label": "2"}])
    convert(given(path), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == 'text,label\n"a, b",1\nc,2\n'
    report = convert(given(write([{"text": "a", "label": 1}, {"text": "b"}])), tmp_path / "u.csv")
    assert (tmp_path / "u.csv").read_text() == "text,label:json\na,1\nb,\n"
    assert report["notes"] == ["columns that hold JSON, to keep types and missing keys: label"]


def test_uniform_nested_values_are_native_in_parquet(write, given, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": "a"}], "n": 1}, {"messages": [], "n": None}]
    convert(given(write(rows)), tmp_path / "t.parquet")
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "t.parquet")}
    assert (
        kinds["n"] == "int64" and kinds["messages"].startswith("list<") and "struct<role: string" in kinds["messages"]
    )


def test_a_cell_that_should_hold_json_and_does_not_is_a_bad_row(tmp_path, given):
    path = tmp_path / "t.csv"
    path.write_text("text,label:json\na,1\nb,oops\n")
    with pytest.raises(DataError, match=r"t.csv:3: the cell of label:json is not JSON"):
        convert(given(path), tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
    counts = convert(given(path, "skip"), tmp_path / "o.jsonl")["counts"]
    assert (counts["rows_in"], counts["records_out"], counts["dropped"]) == (2, 1, {"broken table row": 1})


def test_two_columns_of_one_name_are_refused(tmp_path, given):
    (tmp_path / "t.csv").write_text("text,label,text\na,1,b\n")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        convert(given(tmp_path / "t.csv"), tmp_path / "o.jsonl")


# --- txt ----------------------------------------------------------------------------------------------------------------


def test_texts_go_through_txt(tmp_path, given, read, write):
    (tmp_path / "a.txt").write_text("one\nstill one\n\n\ntwo\n", encoding="utf-8-sig")
    convert(given(tmp_path / "a.txt"), tmp_path / "a.csv")
    assert read(tmp_path / "a.csv") == [{"text": "one\nstill one"}, {"text": "two"}]
    convert(given(tmp_path / "a.csv"), tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_bytes() == b"one\nstill one\n\ntwo\n"


def test_texts_alone_are_taken_out_of_labelled_rows(tmp_path, given, write):
    path = write([{"label": 1, "review": "good"}, {"label": 0, "review": "bad"}])
    source = given(path, format="text", columns={"text": "review"})
    report = convert(source, tmp_path / "o.txt", to="text")
    assert (tmp_path / "o.txt").read_text() == "good\n\nbad\n"
    assert report["notes"] == ["left out, for text rows have no place for it: label (2 rows)"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a\n \nb"}, "blank line inside"),
        ({"text": "a\n"}, "blank line inside or at an end"),
        ({"text": "a\r\nb"}, "carriage return"),
        ({"text": "a", "label": 1}, "holds more than a text (text, label)"),
    ],
)
def test_what_a_txt_would_lose_is_refused(row, said, write, given, tmp_path):
    path = write([{"text": "good"}, row])
    with pytest.raises(DataError) as caught:
        convert(given(path), tmp_path / "o.txt")
    assert said in str(caught.value) and f"{path}:2:" in str(caught.value)
    assert not list(tmp_path.glob("*.txt")) and not list(tmp_path.glob(".*"))
    counts = convert(given(path, "skip"), tmp_path / "o.txt")["counts"]
    assert counts["records_out"] == 1 and sum(counts["dropped"].values()) == 1


# --- schemas ------------------------------------------------------------------------------------------------------------


def test_instruction_to_messages_and_what_is_left_out_is_said(write, given, read, tmp_path):
    path = write([{"instruction": "q", "input": "", "output": "a", "id": 7}])
    report = convert(given(path), tmp_path / "m.jsonl", to="messages")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read(tmp_path / "m.jsonl") == [{"messages": turns}]
    assert report["from"] == "instruction"
    assert report["notes"] == ["left out, for messages rows have no place for it: id (1 rows)"]


def test_what_a_schema_cannot_hold_is_named(write, given, tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = write([{"messages": [{"role": role, "content": content} for role, content in turns]}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*"):
        convert(given(path), tmp_path / "p.jsonl", to="prompt_completion")
    with pytest.raises(DataError, match="did you mean messages"):
        convert(given(path), tmp_path / "p.jsonl", to="mesages")
    assert not list(tmp_path.glob("*p.jsonl*"))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*")), ids=lambda path: path.name)
def test_every_schema_comes_back_from_every_container(path, tmp_path, read, given):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        there_and_back(copy, suffix, read, given)


def test_placeholders_are_filled_with_and_without_a_schema(write, given, read, tmp_path):
    path = write([{"instruction": "Who?", "input": "", "output": "{{name}} of {{team}}"}])
    for to in (None, "messages"):
        out = tmp_path / f"{to}.jsonl"
        report = convert(given(path, fill={"name": "Sprout"}), out, to)
        assert "Sprout of {{team}}" in out.read_text()
        assert report["counts"]["filled"] == {"name": 1}


# --- files --------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked_and_no_input_ever(write, given, tmp_path):
    path = write([{"text": "a"}])
    (tmp_path / "o.json").write_text("mine")
    with pytest.raises(DataError, match="--force"):
        convert(given(path), tmp_path / "o.json")
    assert (tmp_path / "o.json").read_text() == "mine"
    convert(given(path), tmp_path / "o.json", force=True)
    os.link(path, tmp_path / "same.jsonl")
    for out in (path, tmp_path / "same.jsonl"):
        with pytest.raises(DataError, match="is also read"):
            convert(given(path), out, force=True)
    with pytest.raises(DataError, match="lies in the folder"):
        convert(given(tmp_path), tmp_path / "new.jsonl")
    with pytest.raises(DataError, match="suffix"):
        convert(given(path), tmp_path / "o.xlsx")
    with pytest.raises(DataError, match="no folder that you may write to"):
        convert(given(path), path / "o.jsonl")


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_row_that_fails_late_leaves_nothing_behind(suffix, tmp_path, given):
    rows = [json.dumps({"text": "a"})] * 3000 + ["{broken"]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=":3001: not JSON"):
        convert(given(tmp_path / "rows.jsonl"), tmp_path / f"o.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_is_one_sentence(write, given, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        convert(given(write([{"text": "a"}])), tmp_path / "o.jsonl")
    assert not list(tmp_path.glob("*o.jsonl*"))


def test_the_same_rows_give_the_same_packed_bytes(write, given, tmp_path):
    path = write([{"text": "a"}] * 50)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        convert(given(path), tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == path.read_bytes()


def test_types_that_json_lacks_are_said_or_refused(tmp_path, given, read):
    pyarrow = pytest.importorskip("pyarrow")
    import datetime

    from pyarrow import parquet

    day = datetime.date(2024, 2, 29)
    parquet.write_table(pyarrow.table({"text": ["a"], "day": [day]}), tmp_path / "d.parquet")
    report = convert(given(tmp_path / "d.parquet"), tmp_path / "d.jsonl")
    assert read(tmp_path / "d.jsonl") == [{"text": "a", "day": "2024-02-29"}]
    assert report["notes"] == ["dates and times were written as text (1 rows)"]
    parquet.write_table(pyarrow.table({"text": ["a"], "image": [b"\x89PNG"]}), tmp_path / "i.parquet")
    with pytest.raises(DataError, match="a cell holds bytes"):
        convert(given(tmp_path / "i.parquet"), tmp_path / "i.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "parquet"])
def test_progress_names_rows_share_and_time_left(suffix, write, given, tmp_path, monkeypatch):
    random.seed(3)
    rows = [{"text": f"{random.getrandbits(800):x}"} for i in range(6000)]  # that no packing makes small
    path = tmp_path / f"source.{suffix}"
    convert(given(write(rows)), path)
    said: list[str] = []
    monkeypatch.setattr("sproutlm.data.verbs.rows.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("sproutlm.data.verbs.rows.LINE_SECONDS", 0.0)
    convert(Input(SourceConfig(path=str(path)), say=said.append), tmp_path / "o.jsonl")
    shares = [int(line.split("%")[0].split()[-1]) for line in said]
    assert shares == sorted(shares) and shares[0] < 60 and 80 < shares[-1] <= 99
    assert "rows" in said[-1] and "ETA" in said[-1]


# --- real data ----------------------------------------------------------------------------------------------------------

REAL = [
    "pretrain/equations_nested_text.jsonl", "pretrain/c4_en.jsonl", "pretrain/shakespeare_en.txt", "pretrain/wiki_en.txt",
    "sft/toolcall_zh_sharegpt.jsonl", "sft/identity.jsonl", "sft/gsm8k_train.jsonl.gz", "preference/dpo_zh.jsonl",
    "preference/instruction_pairs_en.jsonl", "classification/sms_spam.tsv", "classification/hotel_reviews_zh.csv",
    "eval/cmmlu/dev/food_science.csv",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_come_back_from_every_container(name, shared, tmp_path, read, given):
    source = shared(name)
    went = read(source)
    for suffix in ("csv", "parquet"):
        convert(given(source), tmp_path / f"o.{suffix}")
        convert(given(tmp_path / f"o.{suffix}"), tmp_path / f"{suffix}.jsonl")
        assert [json.dumps(row) for row in read(tmp_path / f"{suffix}.jsonl")] == [json.dumps(row) for row in went]


def test_nested_texts_are_taken_out_by_their_path(shared, tmp_path, given, read):
    source = shared("pretrain/equations_nested_text.jsonl")
    convert(given(source, columns={"text": "text.prompt"}), tmp_path / "o.jsonl", to="text")
    assert read(tmp_path / "o.jsonl")[0] == {"text": "230x + 587 = 3138"}


@pytest.mark.parametrize("name", ["sft/identity.jsonl", "sft/gsm8k_train.jsonl.gz", "preference/dpo_en.jsonl"])
def test_real_conversations_survive_another_schema_and_back(name, shared, tmp_path, given, read):
    """A -> messages or preference_messages -> the same records."""
    from sproutlm.data.sources import Counts, read_records

    source = shared(name)
    to = "preference_messages" if name.startswith("preference") else "messages"
    convert(given(source, "skip"), tmp_path / "o.parquet", to=to)
    before = list(read_records([SourceConfig(path=str(source))], "skip", Counts()))
    assert list(read_records([SourceConfig(path=str(tmp_path / "o.parquet"))], "error", Counts())) == before
