"""Labels are balanced exactly, at random, and what was left out or repeated is counted."""

from __future__ import annotations

from collections import Counter

import pytest

from sproutlm.data.verbs.balance import balance
from sproutlm.errors import DataError


@pytest.fixture
def source(write):
    labels = ["a"] * 50 + ["b"] * 7 + [3] * 20
    return write([{"text": f"t{i}", "label": label} for i, label in enumerate(labels)])


@pytest.mark.parametrize(("to", "each"), [("min", 7), ("max", 50), ("20", 20)])
def test_every_label_has_as_many_rows(source, to, each, given, read, tmp_path):
    report = balance(given(source), tmp_path / "b.jsonl", to)
    rows = read(tmp_path / "b.jsonl")
    assert Counter(row["label"] for row in rows) == {"a": each, "b": each, 3: each}
    assert report["labels"]["b"] == {"before": 7, "after": each}
    times = Counter(row["text"] for row in rows)
    for label in ("a", "b", 3):  # each row of a label as often as the others, give or take one
        mine = {times[row["text"]] for row in rows if row["label"] == label}
        assert max(mine) - min(mine) <= 1
    assert report["repeats"] == len(rows) - len(times)
    assert report["counts"]["records_out"] == len(times) and report["counts"]["rows_in"] == 77


def test_which_rows_are_left_out_is_random_and_the_seed_decides(source, given, read, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        balance(given(source), tmp_path / f"{name}.jsonl", "min", seed=seed)
    a, b, c = (read(tmp_path / f"{name}.jsonl") for name in "abc")
    assert a == b != c
    assert [row["text"] for row in a if row["label"] == "a"] != [f"t{i}" for i in range(7)]


def test_a_field_of_any_rows_can_be_balanced(write, given, read, tmp_path):
    path = write([{"instruction": f"q{i}", "output": "a", "lang": "zh" if i % 3 else "en"} for i in range(30)])
    balance(given(path), tmp_path / "b.jsonl", "min", by="lang")
    assert Counter(row["lang"] for row in read(tmp_path / "b.jsonl")) == {"zh": 10, "en": 10}


@pytest.mark.parametrize("to", ["0", "-3", "mean", "1.5"])
def test_another_number_is_refused(source, to, given, tmp_path):
    with pytest.raises(DataError, match="give min, max or a number"):
        balance(given(source), tmp_path / "b.jsonl", to)


def test_rows_without_a_label_stop_or_are_counted(write, given, tmp_path):
    path = write([{"text": "a", "label": 1}, {"text": "b", "label": 2}, {"text": "c", "label": 1}, {"text": "d"}])
    with pytest.raises(DataError, match="rows.jsonl:4"):
        balance(given(path, format="labelled"), tmp_path / "b.jsonl", "min")
    counts = balance(given(path, "skip", format="labelled"), tmp_path / "b.jsonl", "min")["counts"]
    assert counts["rows_in"] == 4 and counts["records_out"] == 2 and sum(counts["dropped"].values()) == 2


def test_spam_is_balanced_747_to_747(shared, tmp_path, given):
    source = shared("classification/sms_spam.tsv")
    columns = {"label": "column_1", "text": "column_2"}
    labels = balance(given(source, columns=columns), tmp_path / "b.csv", "min")["labels"]
    assert labels == {"ham": {"before": 4827, "after": 747}, "spam": {"before": 747, "after": 747}}


def test_copies_of_a_row_stand_apart(write, given, read, tmp_path):
    path = write([{"text": f"t{i}", "label": "rare" if i > 97 else "often"} for i in range(100)])
    balance(given(path), tmp_path / "b.jsonl", "max")
    texts = [row["text"] for row in read(tmp_path / "b.jsonl")]
    for rare in ("t98", "t99"):
        places = [i for i, text in enumerate(texts) if text == rare]
        gaps = [later - before for before, later in zip(places, places[1:], strict=False)]
        assert len(places) == 49 and 2 <= min(gaps) and max(gaps) <= 6  # 196 rows / 49 copies = 4
    often = [text for text in texts if text not in ("t98", "t99")]
    assert often == [f"t{i}" for i in range(98)]  # rows that are not repeated keep their order


def test_a_copy_that_stands_before_its_row_is_whole(write, given, read, tmp_path):
    rows = [{"text": "x" * i + "é\ud800", "label": i % 5 == 4} for i in range(20)]
    balance(given(write(rows), format="mixed"), tmp_path / "b.jsonl", "max", by="label")
    found = read(tmp_path / "b.jsonl")
    assert len(found) == 32 and all(row in rows for row in found) and all(row in found for row in rows)


def test_more_rows_than_a_disk_holds_are_refused(source, given, tmp_path):
    with pytest.raises(DataError, match="would write"):
        balance(given(source), tmp_path / "b.jsonl", "9" * 25)
