"""Parts are exact, labels keep their shares, and equal texts are never in two parts."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as cases, settings, strategies as st

from sproutlm.data.verbs.split import label_targets, largest_remainders, split
from sproutlm.errors import DataError


def parts_of(source, tmp_path, read, given, shares=(0.8, 0.1, 0.1), name="a", fields=None, suffix="jsonl", **options):
    outs = [tmp_path / f"{name}{i}.{suffix}" for i in range(len(shares))]
    report = split(given(source, "skip", **(fields or {})), outs, shares, **options)
    return [read(out) for out in outs], report


def numbered(n):
    return [{"text": f"text number {i}", "label": "rare" if i % 10 == 0 else "often"} for i in range(n)]


def test_parts_are_exact_and_keep_every_row(write, read, given, tmp_path):
    rows = numbered(1003)
    parts, report = parts_of(write(rows), tmp_path, read, given)
    assert [len(part) for part in parts] == [803, 100, 100]
    assert Counter(row["text"] for part in parts for row in part) == Counter(row["text"] for row in rows)
    assert report["counts"]["rows_in"] == report["counts"]["records_out"] == 1003
    assert parts[0] == sorted(parts[0], key=rows.index)  # the order is the file's


def test_the_same_seed_gives_the_same_bytes_and_the_order_of_rows_does_not_matter(write, read, given, tmp_path):
    rows = numbered(300)
    first, _ = parts_of(write(rows), tmp_path, read, given, name="a", seed=3)
    again, _ = parts_of(write(rows), tmp_path, read, given, name="b", seed=3)
    other, _ = parts_of(write(rows), tmp_path, read, given, name="c", seed=4)
    turned, _ = parts_of(write(rows[::-1], "turned.jsonl"), tmp_path, read, given, name="d", seed=3)
    assert first == again != other
    assert [sorted(r["text"] for r in p) for p in turned] == [sorted(r["text"] for r in p) for p in first]


def test_every_label_keeps_its_share_to_a_row(write, read, given, tmp_path):
    rows = [
        {"text": f"{label} {i}", "label": label} for label, n in (("a", 517), ("b", 83), ("c", 11)) for i in range(n)
    ]
    parts, report = parts_of(write(rows), tmp_path, read, given, stratify=True)
    for label, n in (("a", 517), ("b", 83), ("c", 11)):
        for share, part in zip((0.8, 0.1, 0.1), parts, strict=True):
            assert abs(sum(row["label"] == label for row in part) - n * share) < 1
    assert [len(part) for part in parts] == [489, 61, 61]
    assert report["labels"]["a"] == [sum(r["label"] == "a" for r in part) for part in parts]


def test_a_label_with_too_few_rows_is_trained_on_and_said(write, read, given, tmp_path):
    rows = [{"text": f"{i}", "label": "often"} for i in range(50)] + [{"text": "lonely", "label": "once"}]
    parts, report = parts_of(write(rows), tmp_path, read, given, stratify=True)
    assert {"text": "lonely", "label": "once"} in parts[0]
    assert any("label 'once' has 1 rows, too few for every part" in note for note in report["notes"])


def test_training_gets_a_lonely_label_even_where_the_test_part_needs_rows_more(write, read, given, tmp_path):
    rows = [{"text": "lonely", "label": "once"}]
    rows += [{"text": f"{label} {i}", "label": f"of four {label}"} for label in range(10) for i in range(4)]
    parts, _ = parts_of(write(rows), tmp_path, read, given, (0.8, 0.2), stratify=True)
    assert {"text": "lonely", "label": "once"} in parts[0] and [len(part) for part in parts] == [33, 8]


def test_equal_texts_are_in_one_part_whatever_their_case_and_blanks(write, read, given, tmp_path):
    """The leak that makes a test score a memory test."""
    rows = []
    for i in range(200):
        rows += [{"text": f"Poem {i}\nline two"}, {"text": f"  poem {i} LINE   two "}][: 1 + i % 2]
    parts, report = parts_of(write(rows), tmp_path, read, given)
    seen = [{" ".join(row["text"].split()).lower() for row in part} for part in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert report["duplicates"] == {"groups": 100, "rows": 200}
    assert [len(part) for part in parts] == [240, 30, 30]


def test_equal_prompts_with_other_answers_are_in_one_part(write, read, given, tmp_path):
    rows = [{"instruction": f"q{i // 3}", "input": "", "output": f"a{i}"} for i in range(300)]
    parts, _ = parts_of(write(rows), tmp_path, read, given)
    asked = [{row["instruction"] for row in part} for part in parts]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert [len(part) for part in parts] == [240, 30, 30]


def test_rows_stay_together_by_a_field(write, read, given, tmp_path):
    rows = [{"text": f"t{i}", "author": f"author {i % 30}"} for i in range(300)]
    parts, _ = parts_of(write(rows), tmp_path, read, given, by="author")
    authors = [{row["author"] for row in part} for part in parts]
    assert sum(map(len, authors)) == 30 and [len(part) for part in parts] == [240, 30, 30]


def test_a_group_too_big_for_its_part_is_said(write, read, given, tmp_path):
    rows = [{"text": "same"}] * 95 + [{"text": f"t{i}"} for i in range(5)]
    parts, report = parts_of(write(rows), tmp_path, read, given)
    assert len(parts[0]) == 95 and sum(map(len, parts)) == 100
    assert any("off its share" in note for note in report["notes"])


def test_rows_of_no_known_format_are_parted_too(write, read, given, tmp_path):
    parts, report = parts_of(write([{"x": i % 50} for i in range(100)]), tmp_path, read, given, (0.5, 0.5))
    assert not {r["x"] for r in parts[0]} & {r["x"] for r in parts[1]}
    assert any("format is not known" in note for note in report["notes"])


def test_a_bad_row_is_counted_and_every_part_keeps_types_in_a_table(tmp_path, read, given):
    lines = [f'{{"text": "t{i}", "n": {i}}}' for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{broken", '{"text": ""}']))
    parts, report = parts_of(tmp_path / "rows.jsonl", tmp_path, read, given, (0.5, 0.5), suffix="csv")
    assert report["counts"]["dropped"] == {"not JSON": 1, "empty": 1} and report["counts"]["rows_in"] == 22
    assert sorted(row["n"] for part in parts for row in part) == list(range(20))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.5,), "1 shares for 2 parts"),
        ((1, 0), "above 0"),
        ((1, -1), "above 0"),
        ((0.999, 0.001), "would have no row"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares, said, write, given, tmp_path):
    with pytest.raises(DataError, match=said):
        split(given(write(numbered(20))), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], shares)
    with pytest.raises(DataError, match="same name"):
        split(given(write(numbered(20))), [tmp_path / "a.jsonl"] * 2, (0.5, 0.5))
    assert not list(tmp_path.glob("[ab].jsonl"))


@settings(max_examples=150, deadline=None)
@cases(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_targets_add_up_both_ways_and_are_within_a_row(sizes, weights):
    shares = [Fraction(w, sum(weights)) for w in weights]
    totals = largest_remainders([share * sum(sizes) for share in shares], sum(sizes))
    cells = label_targets(sizes, shares, totals)
    assert (cells.sum(axis=1) == sizes).all()
    exact = np.array([[float(size * share) for share in shares] for size in sizes])
    assert (np.abs(cells - exact) < 1).all()
    assert np.abs(cells.sum(axis=0) - totals).max() <= 1  # a label that training would lack may cost another part a row


def test_spam_keeps_its_share_and_no_message_is_in_two_parts(shared, tmp_path, read, given):
    source: Path = shared("classification/sms_spam.tsv")
    fields = {"columns": {"label": "column_1", "text": "column_2"}}
    parts, report = parts_of(source, tmp_path, read, given, suffix="tsv", fields=fields, stratify=True)
    assert [len(part) for part in parts] == [4459, 558, 557]
    for part in parts:
        assert abs(sum(row["column_1"] == "spam" for row in part) - 747 * len(part) / 5574) < 1
    seen = [{" ".join(row["column_2"].split()).casefold() for row in part} for part in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert report["duplicates"]["rows"] == 705


def test_a_field_that_no_row_has_is_named(write, given, tmp_path):
    path = write([{"text": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no 'author' to go by; the row has text"):
        split(given(path), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], [0.5, 0.5], by="author")
