"""Files as people really have them: exports of spreadsheets, wrong suffixes, linked folders, tables by columns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config.data import SourceConfig
from sproutlm.data.files import find_files
from sproutlm.data.records import Labelled
from sproutlm.data.sources import Counts, read_records, read_rows
from sproutlm.errors import DataError

TWO = [Labelled("hello, you", "x"), Labelled("world", "y")]


def records(path: Path, **fields: Any) -> list[Any]:
    counts = Counts()
    found = list(read_records([SourceConfig(path=str(path), **fields)], "error", counts))
    counts.check()
    return found


def rows(path: Path) -> list[Any]:
    return [row.value for row in read_rows(SourceConfig(path=str(path)), "error", Counts())]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        records(path)
    return str(caught.value)


# --- tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"text;label\r\nhello, you;x\r\nworld;y\r\n",
        b"sep=;\r\ntext;label\r\nhello, you;x\r\nworld;y\r\n",
        b"sep=\t\ntext\tlabel\nhello, you\tx\nworld\ty\n",
        b"text\tlabel\nhello, you\tx\nworld\ty\n",
        "text\tlabel\nhello, you\tx\nworld\ty\n".encode("utf-16"),
        b'\xef\xbb\xbftext,label\r\n"hello, you",x\r\nworld,y\r\n',
        b'text,label,,\n"hello, you",x,,\nworld,y,,\n',
        b'text,label\r"hello, you",x\rworld,y\r',
    ],
    ids=["semicolons", "sep line", "sep tab", "tabs", "utf-16 tabs", "mark", "spare columns", "old line ends"],
)
def test_a_csv_of_a_spreadsheet_is_read(tmp_path, data):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    assert records(path) == TWO


def test_a_column_that_is_named_by_the_recipe_parts_a_header_by_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1 Wort;2 Klasse\nhallo;x\nwelt;y\n")
    assert rows(path)[0] == {"column_1": "1 Wort;2 Klasse"}  # else it could be a text with a semicolon
    found = records(path, format="labelled", columns={"text": "1 Wort", "label": "2 Klasse"})
    assert found == [Labelled("hallo", "x"), Labelled("welt", "y")]


def test_lines_keep_their_numbers_below_a_sep_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\ntext;label\na;b;c\n")
    assert refused(path).startswith(f"{path}:3: 3 cells where 2 were expected (text, label)")


def test_a_cell_without_a_column_name_is_a_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,,\na,x,,\nb,y,,note\n")
    with pytest.raises(DataError, match=r"a\.csv:3: 4 cells where 2 were expected"):
        records(path)


def test_line_ends_in_quoted_cells_stay_as_they_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\r\n"a\r\nb",x\r\n"c\nd",y\r\n"e\rf",z\r\n')
    assert [row["text"] for row in rows(path)] == ["a\r\nb", "c\nd", "e\rf"]


def test_commas_in_a_tsv_are_said(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text,label\na,x\n")
    assert "name the file .csv" in refused(path)


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_not_read_as_text_with_zeros(tmp_path, name):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nhello,x\n".encode(name))
    assert f"encoding: {name}" in refused(path)
    assert records(path, encoding=name) == [Labelled("hello", "x")]


# --- JSON ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"},', "take the comma after the value away"),
        ("{'text': 'a'}", "json.dumps"),
        ('{"text": None}', "json.dumps"),
        ("[", "name it .json"),
    ],
)
def test_what_a_line_that_is_not_json_seems_to_be_is_said(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n" + line + "\n")
    said = refused(path)
    assert said.startswith(f"{path}:1: not JSON (") and words in said


@pytest.mark.parametrize(
    "value",
    [{"text": ["a", "b"], "label": ["x", "y"]}, {"text": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}],
)
def test_a_table_by_columns_is_refused(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    assert "one object with 2 values in each column" in refused(path)


def test_one_object_that_is_a_row_is_a_row(tmp_path):
    value = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=1))
    assert rows(path) == [value] and len(records(path)) == 1


def test_rows_under_a_key_are_pointed_at(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "data": [{"text": "a"}, {"text": "b"}]}))
    assert "'data' holds a list of objects" in refused(path)


@pytest.mark.parametrize("other", [[], [{"messages": None}]])
def test_messages_that_are_null_are_an_empty_row(tmp_path, other):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [good, {"messages": None, "conversations": None}, *other])
    )
    counts = Counts()
    assert len(list(read_records([SourceConfig(path=str(path))], "error", counts))) == 1
    assert counts.dropped == {"empty": 1 + len(other)}


def test_a_null_label_is_told_as_such_and_not_as_another_schema(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in ("x", "y", None)))
    with pytest.raises(DataError, match=r"a\.jsonl:3: label is null"):
        records(path)


def test_a_row_nested_as_deep_as_json_goes_is_one_bad_row_where_it_is_to_be_filled(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "x": ' + "[" * 900 + "]" * 900 + '}\n{"text": "b {{x}}"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*(too deeply|recursion)"):
        records(path, fill={"x": "y"})


# --- folders and links ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """data/a.txt, data/more -> elsewhere (b.txt), and a link back to data in both."""
    for name in ("data/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    for place in ("data", "elsewhere"):
        (tmp_path / place / "back").symlink_to(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt"])
def test_linked_folders_are_read_and_each_file_once(folder, pattern):
    found = find_files(f"{folder}{pattern}").paths
    assert [os.path.relpath(path, folder) for path in found] == ["a.txt", "more/b.txt"]


@pytest.mark.parametrize("pattern", ["", "/*", "/gone.txt"])
def test_a_link_to_nothing_is_told_as_one(folder, pattern):
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "a.txt").unlink()
    with pytest.raises(DataError, match=r"gone\.txt: is a link to nowhere\.txt, which is not there"):
        list(read_rows(SourceConfig(path=f"{folder}{pattern}"), "error", Counts()))


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(DataError, match="path of a source is empty"):
        find_files(" ")


def test_a_damaged_page_of_parquet_is_one_sentence(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    data = bytearray(path.read_bytes())
    data[8:40] = bytes(32)
    path.write_bytes(data)
    said = refused(path)
    assert said.startswith(f"{path}: ") and "\n" not in said and "fetch it again" in said
