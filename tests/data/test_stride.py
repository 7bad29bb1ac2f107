"""Sliding windows: the ones that the book's loader cuts, and a last shorter one, so that no token is lost."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given, strategies as st

from sproutlm.config.load import load_recipe
from sproutlm.config.schema import SourceConfig
from sproutlm.data.loader import Loader
from sproutlm.data.packing import pack
from sproutlm.data.prepare import prepare
from sproutlm.errors import DataError, RecipeError


def book_windows(n: int, seq_len: int, stride: int) -> list[int]:
    """Where "Build a Large Language Model (From Scratch)" begins its windows; it takes max_length tokens and their
    successors, so its max_length is our seq_len - 1."""
    max_length = seq_len - 1
    return list(range(0, n - max_length, stride))


@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_windows_are_the_books_and_one_more_where_tokens_are_left(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    packing = pack(np.array([n]), seq_len, "stream", stride=stride)
    starts, lengths = packing.segment_offset, packing.segment_length
    full = starts[lengths == seq_len]
    assert full.tolist() == book_windows(n, seq_len, stride)
    assert packing.n_rows - len(full) == (len(full) == 0 or full[-1] + seq_len < n)
    assert starts.tolist() == [k * stride for k in range(packing.n_rows)]
    assert starts[-1] + lengths[-1] == n


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(2, 20), st.data())
def test_windows_over_documents_and_over_their_concatenation(lengths, seq_len, data):
    """Both against windows cut from lists of tokens, one by one."""
    stride = data.draw(st.integers(1, seq_len))
    documents = [[(i, j) for j in range(n)] for i, n in enumerate(lengths)]

    def cut(tokens):
        rows = []
        for start in range(0, len(tokens), stride):
            rows.append(tokens[start : start + seq_len])
            if start + seq_len >= len(tokens):
                break
        return rows

    expected = {
        "none": [row for document in documents for row in cut(document)],
        "stream": cut([token for document in documents for token in document]),
    }
    for mode, rows in expected.items():
        packing = pack(np.array(lengths), seq_len, mode, stride=stride)
        segments = [
            [(int(d), j) for j in range(o, o + n)]
            for d, o, n in zip(packing.segment_document, packing.segment_offset, packing.segment_length, strict=True)
        ]
        bounds = zip(packing.row_starts[:-1], packing.row_starts[1:], strict=True)
        assert [sum(segments[a:b], []) for a, b in bounds] == rows


def test_a_stride_of_a_whole_row_is_no_overlap():
    lengths = np.random.default_rng(0).integers(0, 90, size=500)
    for mode in ("stream", "none"):
        plain, windows = pack(lengths, 64, mode), pack(lengths, 64, mode, stride=64)
        for name in ("row_starts", "segment_document", "segment_offset", "segment_length"):
            assert (getattr(plain, name) == getattr(windows, name)).all()


def test_a_stride_that_skips_tokens_or_has_no_order_is_refused():
    with pytest.raises(DataError, match="the 6 tokens between two windows would never be trained"):
        pack(np.array([100]), 10, "stream", stride=16)
    with pytest.raises(DataError, match=r"data.packing: stream .* or none .*not with best_fit"):
        pack(np.array([100]), 10, "best_fit", stride=5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"packing": "best_fit"}, "no sliding windows"),
        ({"packing": "stream", "stride": 99}, "more than data.seq_len=16"),
    ],
)
def test_a_recipe_that_asks_for_it_is_refused_before_anything_is_built(tmp_path, settings, sentence):
    recipe = {
        "name": "x",
        "data": {"train": [{"path": "x.txt"}], "seq_len": 16, "stride": 4, **settings},
        "model": {"dim": 32, "n_layers": 1, "n_heads": 2},
        "train": {"steps": 1, "batch_tokens": 16},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def book(tmp_path, tokenizer, template):
    text = tmp_path / "book.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 30)
    return prepare([SourceConfig(path=str(text))], tokenizer, template, tmp_path / "d", seq_len=16, say=lambda _: None)


@pytest.mark.parametrize("packing", ["stream", "none"])
def test_each_window_trains_every_token_but_its_first(book, packing):
    loader = Loader(book, seq_len=16, rows_per_step=4, seed=3, packing=packing, stride=4)
    tokens = book.document(0)[0]
    batch = loader.rows_batch(range(loader.rows))
    for row in range(loader.rows - 1):
        assert batch.tokens[row].tolist() == tokens[4 * row : 4 * row + 16].tolist()
        assert batch.targets[row].tolist() == [*tokens[4 * row + 1 : 4 * row + 16].tolist(), -100]
        assert batch.positions[row].tolist() == list(range(16))


def test_any_step_of_windows_is_known_from_its_number(book):
    one, other = (
        Loader(book, seq_len=16, rows_per_step=4, seed=3, packing="stream", stride=4, document_mask=False)
        for _ in range(2)
    )
    for step in range(5):
        one.batch(step)
    assert one.batch(7).tokens.equal(other.batch(7).tokens)
    epoch = np.concatenate([other.row_indices(step) for step in range(other.rows // 4 + 1)])[: other.rows]
    assert sorted(epoch.tolist()) == list(range(other.rows))
