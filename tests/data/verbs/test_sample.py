"""A sample is exact, fair, bounded and the same for the same seed."""

from __future__ import annotations

import json
import random

import pytest

from sproutlm.data.verbs import sample as module
from sproutlm.data.verbs.sample import Reservoir, sample
from sproutlm.errors import DataError


def numbered(n):
    return [{"text": f"text {i}", "n": i} for i in range(n)]


def test_rows_are_exact_distinct_and_in_order(write, read, given, tmp_path):
    report = sample(given(write(numbered(1000))), tmp_path / "s.jsonl", rows=100, seed=1)
    kept = [row["n"] for row in read(tmp_path / "s.jsonl")]
    assert len(kept) == len(set(kept)) == 100 and kept == sorted(kept)
    assert report["counts"]["dropped"] == {"not sampled": 900} and report["counts"]["records_out"] == 100


def test_the_seed_decides(write, given, tmp_path):
    path = write(numbered(500))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample(given(path), tmp_path / f"{name}.jsonl", rows=50, seed=seed)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_every_row_has_the_same_chance():
    """Chi-square over 40 places and 4,000 samples of 10; the limit is the 99.9 % point for 39 degrees of freedom."""
    drawn = [0] * 40
    random.seed(5)
    for _ in range(4000):
        held = Reservoir(10)
        for place in range(40):
            held.offer(random.getrandbits(64), place, place, 1)
        kept, total, _ = held.finish()
        assert total == 10
        for text in kept:
            drawn[json.loads(text)] += 1
    assert sum((n - 1000) ** 2 / 1000 for n in drawn) < 72.1


def test_long_rows_are_not_favoured_by_a_size_in_bytes():
    """Half of the rows are ten times as long; they are half of the rows of a sample, too."""
    random.seed(7)
    long = rows = 0
    for _ in range(300):
        held = Reservoir(5500)
        for place in range(400):
            held.offer(random.getrandbits(64), place, place, 100 if place % 2 else 10)
        kept, _, _ = held.finish()
        rows += len(kept)
        long += sum(json.loads(text) % 2 for text in kept)
    assert abs(long / rows - 0.5) < 0.02


def test_memory_holds_the_sample_and_not_the_file():
    held = Reservoir(50)
    for place in range(5000):
        held.offer(module.hash64(str(place), 0), place, place, 1)
        assert len(held._heap) <= 50
    held = Reservoir(1000)
    for place in range(2000):
        held.offer(module.hash64(str(place), 0), place, place, 30)
        assert held.total < 1000 + 30


def test_megabytes_are_met_to_within_a_row(write, given, tmp_path):
    rows = [{"text": "x" * (i % 97)} for i in range(3000)]
    report = sample(given(write(rows)), tmp_path / "s.jsonl", megabytes=0.05)
    size = (tmp_path / "s.jsonl").stat().st_size
    assert size == report["taken"]["bytes"] and abs(size - 50_000) <= 110


def test_tokens_are_met_to_within_a_row(write, given, read, tmp_path, tokenizer):
    from sproutlm.data.encode import encode
    from sproutlm.data.records import Text

    tokenizer.save(tmp_path / "tok")
    path = write([{"text": f"The answer is {'fox ' * (i % 9)}{i}."} for i in range(400)])
    report = sample(given(path), tmp_path / "s.jsonl", tokens=2000, tokenizer=tmp_path / "tok")
    sizes = [len(encode(Text(row["text"]), tokenizer, None).ids) for row in read(tmp_path / "s.jsonl")]
    assert sum(sizes) == report["taken"]["tokens"] and abs(sum(sizes) - 2000) <= max(sizes)


def test_less_than_was_asked_for_is_said_and_types_stay(write, read, given, tmp_path):
    report = sample(given(write(numbered(5))), tmp_path / "s.csv", rows=9)
    assert read(tmp_path / "s.csv") == numbered(5)
    assert "there is less than was asked for: all 5 rows were taken" in report["notes"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs one size"),
        ({"rows": 1, "megabytes": 1.0}, "needs one size"),
        ({"rows": 0}, "above 0"),
        ({"tokens": 5}, "--tokens and --tokenizer DIR go together"),
    ],
)
def test_a_size_is_needed(options, said, write, given, tmp_path):
    with pytest.raises(DataError, match=said):
        sample(given(write(numbered(3))), tmp_path / "s.jsonl", **options)


def test_a_bad_row_stops_or_is_counted(tmp_path, given):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{oops\n{"text": "b"}\n')
    with pytest.raises(DataError, match="rows.jsonl:2: not JSON"):
        sample(given(tmp_path / "rows.jsonl"), tmp_path / "s.jsonl", rows=1)
    counts = sample(given(tmp_path / "rows.jsonl", "skip"), tmp_path / "s.jsonl", rows=1)["counts"]
    assert counts["dropped"] == {"not JSON": 1, "not sampled": 1} and counts["rows_in"] == 3


def test_a_sample_of_packed_real_rows(shared, tmp_path, read, given):
    report = sample(given(shared("sft/gsm8k_train.jsonl.gz")), tmp_path / "s.parquet", rows=200, seed=4)
    assert len(read(tmp_path / "s.parquet")) == 200 and report["counts"]["rows_in"] == 7473


def test_less_than_a_byte_is_refused(write, given, tmp_path):
    with pytest.raises(DataError, match="less than a byte"):
        sample(given(write([{"text": "a"}])), tmp_path / "s.jsonl", megabytes=1e-9)
