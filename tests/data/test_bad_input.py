"""Every file that cannot be read is refused in one sentence: what was wrong, where, and the cure."""

from __future__ import annotations

import gzip
import json
import os
import sys
import traceback
from pathlib import Path

import pytest

from sproutlm.config.schema import SourceConfig
from sproutlm.data import raw_rows
from sproutlm.data.records import Text
from sproutlm.data.sources import Counts, read_records
from sproutlm.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def read(path, on_bad_row="error", counts=None, **fields):
    counts = Counts() if counts is None else counts
    found = list(read_records([SourceConfig(path=str(path), **fields)], on_bad_row, counts))
    counts.check()
    return found


def refusal(path, on_bad_row="error", **fields) -> str:
    with pytest.raises(DataError) as caught:
        read(path, on_bad_row, **fields)
    said = str(caught.value)
    assert Path(path).name.split("*")[0] in said
    assert "\n" not in said and "Traceback" not in said
    assert caught.value.exit_code == 1
    return said


# --- files that are not there, empty, or closed -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert "empty" in refusal(tmp_path / name)


def test_a_table_with_a_header_and_no_row_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    assert "holds no row" in refusal(tmp_path / "a.csv")


def test_an_empty_array_and_an_array_of_empty_rows_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("[ ]")
    assert "holds no row" in refusal(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"text": ""}, {"text": null}]')
    assert "none of its 2 rows can be used (empty 2)" in refusal(tmp_path / "a.json")


def test_an_empty_folder_and_a_folder_of_other_things_are_refused(tmp_path):
    (tmp_path / "corpus").mkdir()
    assert "is empty" in refusal(tmp_path / "corpus")
    (tmp_path / "corpus" / "photo.png").write_bytes(b"x")
    said = refusal(tmp_path / "corpus")
    assert "seen: .png" in said and ".jsonl" in said


def test_an_empty_file_among_others_does_no_harm(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("text")
    assert read(tmp_path) == [Text("text")]


def test_a_missing_path_names_the_nearest(tmp_path):
    (tmp_path / "poems.jsonl").write_text('{"text": "a"}')
    assert f"did you mean {tmp_path / 'poems.jsonl'}?" in refusal(tmp_path / "poem.jsonl")
    with pytest.raises(DataError, match=f"^{tmp_path / 'datas'}: no such file or folder"):
        read(tmp_path / "datas" / "deeper" / "x.jsonl")


def test_a_pattern_without_a_match_and_an_unknown_suffix_are_refused(tmp_path):
    assert "no file matches" in refusal(tmp_path / "*.jsonl")
    (tmp_path / "a.docx").write_bytes(b"x")
    assert "suffix '.docx' is not known" in refusal(tmp_path / "a.docx")


def as_nobody(check) -> str:
    """Run ``check`` in a child without root's rights; what it returned or how it failed."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            answer = str(check())
        except BaseException:
            answer = traceback.format_exc()
        os.write(writable, answer.encode()[:4000])
        os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def opened_to_all(folder: Path) -> None:
    """Let another user reach ``folder`` (pytest makes its folders private)."""
    for parent in [folder, *folder.parents]:
        if parent.owner() == folder.owner() and parent != Path(parent.anchor) and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o711)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_without_permission_is_refused(tmp_path, closed):
    opened_to_all(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "a.jsonl").write_text('{"text": "a"}')
    (folder / "a.jsonl").chmod(0o644)
    assert as_nobody(lambda: read(folder)) == str([Text("a")])
    (folder / "a.jsonl" if closed == "file" else folder).chmod(0)
    try:
        for path in (folder, folder / "a.jsonl"):
            said = as_nobody(lambda path=path: refusal(path))
            assert "no permission to read it; grant it" in said, said
            assert "Traceback" not in said, said
    finally:
        folder.chmod(0o755)


# --- bytes that are not the text they should be -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_of_another_encoding_is_refused_with_the_encoding_to_set(tmp_path, kind, on_bad_row):
    body = {
        "txt": f"ascii\n\n{POEM}\n",
        "jsonl": f'{{"text": "ascii"}}\n{{"text": "{POEM}"}}\n',
        "json": f'[{{"text": "ascii"}},\n{{"text": "{POEM}"}}]',
        "csv": f"id,text\n1,ascii\n2,{POEM}\n",
        "tsv": f"id\ttext\n1\tascii\n2\t{POEM}\n",
    }[kind]
    data = body.encode("gb18030")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    said = refusal(path, on_bad_row)
    offset = next(i for i, byte in enumerate(data) if byte >= 0x80)
    line = data[:offset].count(b"\n") + 1
    assert said.startswith(f"{path}:{line}: not UTF-8 (first bad byte at offset {offset})")
    assert "set encoding: gb18030" in said
    assert len(read(path, encoding="gb18030")) == 2


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1252", "Le café est très déjà fermé, señor"), ("utf-16", "no mark")]
)
def test_western_and_unmarked_encodings_are_refused_too(tmp_path, encoding, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    if encoding == "cp1252":
        assert "set encoding: cp1252" in refusal(path)
    else:
        said = refusal(path, encoding="ascii")
        assert "set encoding: utf-16" in said


def test_utf8_read_as_something_else_is_refused_with_utf8(tmp_path):
    (tmp_path / "a.txt").write_text(POEM, encoding="utf-8")
    assert "set encoding: utf-8" in refusal(tmp_path / "a.txt", encoding="ascii")


def test_one_undecodable_line_in_a_good_file_is_a_bad_row(tmp_path):
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in (POEM, "b", "c")]
    lines[1] = lines[1].replace(b"b", b"\xff")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert f"{path}:2: byte 0xFF at character 11 is not utf-8" in refusal(path)
    counts = Counts()
    assert read(path, "skip", counts) == [Text(POEM), Text("c")]
    assert counts.dropped == {"not decodable": 1}


def test_an_unknown_encoding_names_the_nearest(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert "did you mean gb18030?" in refusal(tmp_path / "a.txt", encoding="gb1803")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_or_damaged_packed_file_is_refused(tmp_path, suffix):
    """Pitfall 13: a cut .zst ends quietly in the library's own reader, and its rows would be missing without a word."""
    data = "".join(json.dumps({"text": f"{i * 7919}"}) + "\n" for i in range(3000)).encode()
    if suffix == ".zst":
        packed = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    else:
        packed = gzip.compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    for bad in (packed[: len(packed) // 2], b"no archive at all"):
        path.write_bytes(bad)
        assert "damaged or cut short" in refusal(path)


def test_a_broken_parquet_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing else")
    assert "not a whole parquet file" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(("name", "module"), [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, module):
    (tmp_path / name).write_bytes(b"x")
    for known in [m for m in sys.modules if m.split(".")[0] == module] + [module, "pyarrow.parquet"]:
        monkeypatch.setitem(sys.modules, known, None)
    assert f'needs {module}; install it with: pip install "sproutlm[data]"' in refusal(tmp_path / name)


# --- rows that are not what they should be ------------------------------------------------------------------------------


def test_a_broken_json_line_is_named_and_skipped_only_when_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"\n{"text": "c"}\n')
    said = refusal(path)
    assert said.startswith(f"{path}:2: not JSON (") and "set on_bad_row: skip" in said
    counts = Counts()
    assert read(path, "skip", counts) == [Text("a"), Text("c")]
    assert counts.examples == [f"{path}:2: not JSON (Expecting ',' delimiter at character 13); the row was skipped"]


def test_an_array_in_a_jsonl_file_is_told_to_be_named_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('[\n{"text": "a"}\n]\n')
    assert "name it .json" in refusal(tmp_path / "a.jsonl", format="text")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[{"text": "a"},\n{"text": "b"', 2, "broken JSON"),
        ('[{"text": "a"}\n{"text": "b"}]', 2, "expected ',' or ']'"),
        ('[{"text": "a"},\n{"text": "b"}\n', 3, "has no end"),
        ('[\n{"text": "a"}]\n\n[1]', 4, "text after the end"),
        ('[{"text": "a"},\n{text: 3}]', 2, "broken JSON"),
        ('[{"text": "a"},\n]', 2, "a comma before the end"),
        ('{"text": "a"}}', 1, "broken JSON"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_broken_json_array_is_refused_even_where_rows_are_skipped(tmp_path, text, line, words, on_bad_row):
    """Pitfall 13: after a break in an array no row can be trusted; stopping quietly there would lose the rest."""
    path = tmp_path / "a.json"
    path.write_text(text)
    said = refusal(path, on_bad_row)
    assert said.startswith(f"{path}:{line}: ") and words in said


def test_an_unclosed_quote_in_a_csv_is_refused(tmp_path):
    """Pitfall 13: the rest of the file would become one cell."""
    path = tmp_path / "a.csv"
    path.write_text('text,n\na,1\n"b,2\nc,3\nd,4\n')
    assert f"{path}:3: a quote that opens here is never closed" in refusal(path, "skip")


def test_a_table_row_with_too_few_or_many_cells_is_a_bad_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,1\nb\nc,2,3\n"d"x,4\ne,5\n')
    assert f"{path}:3: 1 cell where 2 were expected (text, label)" in refusal(path)
    counts = Counts()
    assert [r.text for r in read(path, "skip", counts)] == ["a", "e"]
    assert counts.dropped == {"broken table row": 3}
    assert "3 cells" in counts.examples[1] and "not csv" in counts.examples[2]


def test_a_row_without_end_is_refused_before_memory_runs_out(tmp_path, monkeypatch):
    """Pitfall 12: a missing quote, bracket or blank line must not pull the file into memory."""
    monkeypatch.setattr(raw_rows, "ROW_LIMIT", 10_000)
    monkeypatch.setattr(raw_rows, "TEXT_LIMIT", 10_000)
    long = "word\n" * 40_000
    for name, text in [
        ("a.txt", long),
        ("a.csv", 'text,n\n"' + long),
        ("a.json", '["' + long.replace("\n", " ")),
    ]:
        (tmp_path / name).write_text(text)
        assert "one row of more than 10,000 characters" in refusal(tmp_path / name)


def test_a_parquet_file_with_the_wrong_column_names_its_columns_and_the_cure(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"body": ["a", "b"], "n": [1, 2]}), tmp_path / "a.parquet")
    said = refusal(tmp_path / "a.parquet")
    assert "columns body, n" in said and "format: text, columns: {text: COLUMN}" in said
    said = refusal(tmp_path / "a.parquet", format="text")
    assert ":1: there is no 'text'; the row has body, n; name the right one with columns: {text: NAME}" in said
    assert "none of its 2 rows can be used" in refusal(
        tmp_path / "a.parquet", "skip", columns={"text": "bodi"}, format="text"
    )
    assert read(tmp_path / "a.parquet", columns={"text": "body"}) == [Text("a"), Text("b")]


ASKED = {"role": "user", "content": "a"}
PICTURE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"messages": [ASKED, {"role": "assistant", "content": [PICTURE]}]}, "content part image_url",
         "message 2: its content holds a part of the type image_url; only text is read"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "content is not a string", "its content is null"),
        ({"messages": [ASKED, {"role": "assistant", "content": "b", "weight": 0.5}]}, "weight is not 0 or 1", "weight is 0.5"),
        ({"messages": [{**ASKED, "tool_calls": [{"name": "f"}]}]}, "tool_calls of another role", "only an assistant has them"),
        ({"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": "soon"}]},
         "tool call not JSON", "text that is not JSON ('soon'"),
        ({"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [{"arguments": {}}]}]},
         "tool call has no name", "a call without a name; it has arguments"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
         "tool arguments are not an object", "the arguments of f are a list, not an object"),
        ({"messages": [ASKED, {"role": "assistant", "content": "b"}], "tools": "all of them"}, "tools not JSON", "all of them"),
        ({"messages": [ASKED, {"role": "assistant", "content": "b"}], "tools": [{"description": "x"}]},
         "tool has no name", "tool 1 has no name; it has description"),
        ({"messages": [{"role": "system", "content": "", "tools": [{"name": "f"}]}, ASKED, {"role": "assistant", "content": "b"}],
          "tools": [{"name": "g"}]}, "two tool lists", "keep one"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "look it up"}]},
         "tool call not JSON", "'look it up'"),
        ({"messages": "hello"}, "messages not JSON", "messages is text that is not JSON"),
        ({"messages": 3}, "messages is not a list", "messages is a number (3), not a list of messages"),
        ({"prompt": "a", "completion": "b", "kto_tag": "maybe"}, "rating is not true or false", "the rating is 'maybe'"),
        ({"messages": [ASKED], "kto_tag": True}, "no answer to rate", "the last message is not the assistant's"),
        ({"prompt": "a", "chosen": [ASKED], "rejected": "b"}, "no assistant turn", "chosen has no assistant turn"),
        ({"text": "a", "label": ""}, "label is empty", "name the class"),
        ({"text": "a", "label": 0.5}, "label is not a name or a number", "label is a number (0.5)"),
        ({"instruction": "a", "output": "b", "history": "c"}, "history not JSON", "'c'"),
        ({"instruction": "a", "output": "half \ud800"}, "half a surrogate pair", "output holds half a surrogate pair (U+D800)"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "\udc00"}}]}]},
         "half a surrogate pair", "message 2: tool_calls holds half a surrogate pair"),
    ],
)  # fmt: skip
def test_a_row_that_a_schema_cannot_take_is_one_sentence_with_its_place_and_is_counted_when_skipped(
    tmp_path, row, reason, words
):
    path = tmp_path / "a.jsonl"
    good = {"messages": [ASKED, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row) + "\n")
    assert refusal(path).startswith(f"{path}:1: ") and words in refusal(path)
    path.write_text(json.dumps(row) + "\n" + json.dumps(good) + "\n")
    counts = Counts()
    assert len(read(path, "skip", counts, format="mixed")) == 1
    assert counts.dropped == {reason: 1} and words in counts.examples[0]


def test_deep_or_odd_json_is_a_bad_row_not_a_crash(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + "[" * 200_000 + "\n" + '{"text": "half \\ud800"}\n{"text": NaN}\n"bare"\n')
    counts = Counts()
    assert read(path, "skip", counts) == [Text("a"), Text("bare")]
    assert counts.dropped == {"not JSON": 1, "half a surrogate pair": 1, "text is not a string": 1}


def test_a_source_none_of_whose_rows_can_be_used_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    said = refusal(tmp_path / "a.jsonl", "skip")
    assert "none of its 2 rows can be used (text is not a string 2)" in said and "a.jsonl:1" in said


def test_an_unknown_split_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert "choose among auto, none, blank_line, line" in refusal(tmp_path / "a.txt", columns={"split": "lines"})


def test_the_real_file_whose_text_is_an_object_is_refused_with_the_cure():
    path = SHARED / "pretrain" / "equations_nested_text.jsonl"
    if not path.exists():
        pytest.skip("real data equations_nested_text.jsonl is not here")
    said = refusal(path)
    assert ":1: text is an object with the keys prompt, steps, final_answer, not a string" in said
    assert "columns: {text: text.prompt}" in said
    assert "none of its 3,000 rows can be used" in refusal(path, "skip")
