"""A mixture has the shares that were asked for, in tokens, everywhere in the file, and says what it repeats."""

from __future__ import annotations

import pytest

from sproutlm.data.encode import encode
from sproutlm.data.records import Text
from sproutlm.data.verbs.mix import mix
from sproutlm.errors import DataError


@pytest.fixture
def sources(write, given):
    """Two sources whose rows are of different length, and of different number."""
    short = write([{"text": f"fox {i}"} for i in range(600)], "short.jsonl")
    long = write([{"text": f"dog {i} " + "jumps over the lazy dog " * 5} for i in range(300)], "long.jsonl")

    def parts(a=0.7, b=0.3):
        return [(given(short), a), (given(long), b)]

    return parts


def share_of(rows, word, size) -> float:
    return sum(size(row) for row in rows if row["text"].startswith(word)) / sum(map(size, rows))


def line_bytes(row) -> int:
    return len(row["text"]) + len('{"text": ""}\n')


def test_shares_are_of_tokens(sources, read, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tok")
    report = mix(sources(), tmp_path / "m.jsonl", tokens=4000, tokenizer=tmp_path / "tok")

    def tokens(row):
        return len(encode(Text(row["text"]), tokenizer, None).ids)

    rows = read(tmp_path / "m.jsonl")
    assert abs(sum(map(tokens, rows)) - 4000) < 60 and report["total"] == sum(map(tokens, rows))
    assert abs(share_of(rows, "fox", tokens) - 0.7) < 0.01
    assert abs(sum(row["text"].startswith("fox") for row in rows) / len(rows) - 0.7) > 0.1  # and so not of rows
    assert report["sources"][0]["share"] == share_of(rows, "fox", tokens)


def test_without_a_tokenizer_shares_are_of_bytes_and_that_is_said(sources, read, tmp_path):
    report = mix(sources(), tmp_path / "m.jsonl", megabytes=0.02)
    rows = read(tmp_path / "m.jsonl")
    assert abs((tmp_path / "m.jsonl").stat().st_size - 20_000) < 200
    assert abs(share_of(rows, "fox", line_bytes) - 0.7) < 0.01
    assert any("shares are of bytes" in note for note in report["notes"])


def test_sources_advance_evenly(sources, read, tmp_path):
    """Every tenth of the file has the shares of the whole."""
    mix(sources(), tmp_path / "m.jsonl", megabytes=0.02)
    rows = read(tmp_path / "m.jsonl")
    for start in range(0, len(rows) - len(rows) // 10, len(rows) // 10):
        assert abs(share_of(rows[start : start + len(rows) // 10], "fox", line_bytes) - 0.7) < 0.12


def test_rows_are_exact_and_their_shares_of_bytes(sources, read, tmp_path):
    mix(sources(0.3, 0.7), tmp_path / "m.jsonl", rows=301)
    rows = read(tmp_path / "m.jsonl")
    assert len(rows) == 301 and len({row["text"] for row in rows}) == 301
    assert abs(share_of(rows, "fox", line_bytes) - 0.3) < 0.01


def test_without_a_size_the_scarcest_source_is_used_up_and_nothing_repeats(sources, read, tmp_path):
    report = mix(sources(0.5, 0.5), tmp_path / "m.jsonl")
    rows = read(tmp_path / "m.jsonl")
    assert len({row["text"] for row in rows}) == len(rows)
    assert report["sources"][0]["rows"] == 600 and report["sources"][0]["passes"] == 1.0
    assert abs(share_of(rows, "fox", line_bytes) - 0.5) < 0.01


def test_repeats_are_counted_said_and_can_be_refused(sources, read, tmp_path):
    report = mix(sources(0.9, 0.1), tmp_path / "m.jsonl", megabytes=0.04)
    rows = [row["text"] for row in read(tmp_path / "m.jsonl") if row["text"].startswith("fox")]
    part = report["sources"][0]
    assert part["repeats"] == len(rows) - len(set(rows)) > 600 and len(set(rows)) == 600
    assert {rows.count(text) for text in set(rows)} <= {int(part["passes"]), int(part["passes"]) + 1}
    assert any("repeats" in note and "short.jsonl" in note for note in report["notes"])
    with pytest.raises(DataError, match="short.jsonl: holds 600 rows, and its share needs"):
        mix(sources(0.9, 0.1), tmp_path / "n.jsonl", megabytes=0.04, repeat=False)
    assert not (tmp_path / "n.jsonl").exists()


def test_the_seed_decides_which_rows(sources, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        mix(sources(), tmp_path / f"{name}.jsonl", rows=100, seed=seed)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_every_row_is_accounted_for(sources, tmp_path):
    counts = mix(sources(), tmp_path / "m.jsonl", rows=100)["counts"]
    assert counts["rows_in"] == 900 and counts["records_out"] == 100 and counts["dropped"] == {"not chosen": 800}


def test_different_schemas_are_refused_or_brought_to_one(write, given, read, tmp_path):
    parts = [
        (given(write([{"instruction": "q", "input": "", "output": "a"}] * 9, "i.jsonl")), 0.5),
        (given(write([{"prompt": "p", "completion": "c"}] * 9, "p.jsonl")), 0.5),
    ]
    with pytest.raises(DataError, match="different schemas .*--to messages"):
        mix(parts, tmp_path / "m.jsonl", rows=6)
    mix(parts, tmp_path / "m.jsonl", rows=6, to="messages")
    rows = read(tmp_path / "m.jsonl")
    assert len(rows) == 6 and all(list(row) == ["messages"] for row in rows)
    assert {row["messages"][0]["content"] for row in rows} == {"p", "q"}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tokens": 5}, "--tokenizer"), ({"rows": 5, "megabytes": 1.0}, "give one of"), ({"rows": 1}, "less than a row")],
)
def test_sizes_that_make_no_sense_are_refused(options, said, sources, tmp_path):
    with pytest.raises(DataError, match=said):
        mix(sources(), tmp_path / "m.jsonl", **options)


def test_one_source_or_a_weight_of_nothing_is_refused(sources, tmp_path):
    with pytest.raises(DataError, match="two sources"):
        mix(sources()[:1], tmp_path / "m.jsonl", rows=5)
    with pytest.raises(DataError, match="above 0"):
        mix(sources(0, 1), tmp_path / "m.jsonl", rows=5)


def test_two_languages_of_real_rows(shared, tmp_path, given):
    parts = [(given(shared("sft/gsm8k_train.jsonl.gz")), 0.25), (given(shared("sft/identity.jsonl")), 0.75)]
    report = mix(parts, tmp_path / "m.jsonl", megabytes=0.2, to="messages")
    assert all(abs(part["share"] - part["asked"]) < 0.01 for part in report["sources"])
    assert report["sources"][0]["repeats"] == 0 < report["sources"][1]["repeats"]
