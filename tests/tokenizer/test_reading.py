"""What of a corpus is read: everything where it fits, else an even sample in bounded memory, the same every time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from sproutlm.tokenizer import train_tokenizer
from sproutlm.tokenizer.reading import Used, read


def rows(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"row {number} of the village's book: 风，潮水，船名。\n"


def size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def test_what_fits_is_read_as_it_is() -> None:
    texts = ["春眠不觉晓", "", "a" * 70_000, "\ud800 half", *rows(100)]
    whole = list(read(texts, Used("first", 10**9)))
    used = Used("spread", size(whole))
    assert list(read(texts, used)) == whole
    assert not used.cut
    assert used.used == used.total == size(whole)
    assert train_tokenizer(rows(500), 300, sample="spread").fingerprint == (
        train_tokenizer(rows(500), 300, sample="first").fingerprint
    )


def test_a_sample_is_even_within_its_limit_and_in_order() -> None:
    used = Used("spread", 100_000)
    kept = list(read(rows(20_000), used))
    assert 90_000 <= used.used == size(kept) <= 100_000
    assert used.total == size(list(rows(20_000)))
    numbers = [int(text.split()[1]) for text in kept]
    assert numbers == sorted(numbers)
    tenths = [sum(n * 10 // 20_000 == tenth for n in numbers) / len(numbers) for tenth in range(10)]
    assert all(0.05 < share < 0.16 for share in tenths), tenths  # 0.1 each; a block is 1/256 of the sample
    assert f"{used.used:,} of {used.total:,} bytes" in used.sentence()


def test_the_same_texts_and_seed_give_the_same_sample() -> None:
    def kept(seed: int) -> list[str]:
        return list(read(rows(5000), Used("spread", 50_000), seed=seed))

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)
    said: list[str] = []
    one, two = (
        train_tokenizer(rows(5000), 330, max_bytes=50_000, say=said.append).files()["tokenizer.json"] for _ in "ab"
    )
    assert one == two
    assert any("an even sample" in sentence for sentence in said)


def test_the_first_bytes_are_read_and_no_more() -> None:
    read_rows = 0

    def endless() -> Iterator[str]:
        nonlocal read_rows
        while True:
            read_rows += 1
            yield "春眠不觉晓 the fox " * 10

    said: list[str] = []
    train_tokenizer(endless(), 300, sample="first", max_bytes=50_000, say=said.append)
    assert read_rows < 5000
    assert any("first 50,000 bytes" in sentence for sentence in said)


@pytest.mark.parametrize(
    "row", ["x" * 50 + "\n", "词\n", "long row\n" * 20_000], ids=["rows", "tiny rows", "long rows"]
)
def test_memory_is_bounded_by_max_bytes(row: str) -> None:
    """Pitfall 12: a sample holds little more than max_bytes, of rows of any length (300 MB: benchmarks/tokenizer.py)."""
    count = min(100_000, 15_000_000 // len(row.encode()))
    limit = count * len(row.encode()) // 10
    tracemalloc.start()
    used = Used("spread", limit)
    pieces = sum(1 for _ in read((row for _ in range(count)), used))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pieces
    assert used.used <= limit < used.total  # type: ignore[operator]
    assert peak < 2.0 * limit + 300_000, f"{peak:,}"


def test_one_row_longer_than_the_limit_is_cut() -> None:
    used = Used("spread", 1000)
    kept = list(read(["春" * 5000], used))
    assert size(kept) <= 1000 < used.total  # type: ignore[operator]
    assert kept
    assert used.cut
