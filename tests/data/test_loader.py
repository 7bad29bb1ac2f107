"""``batch(step)`` is a pure function, and its targets are the trained tokens, each with the token before it."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from sproutlm.data.loader import IGNORE, Batch, Loader, permute
from sproutlm.data.shards import ShardWriter, TokenDataset
from sproutlm.errors import DataError

EOS, PAD = 0, 1


def dataset_of(folder, documents, trained=None, per_shard=None) -> TokenDataset:
    """Shards without a manifest, ``per_shard`` documents each; ``trained`` marks each token."""
    folder.mkdir()
    per_shard = per_shard or len(documents)
    for number, start in enumerate(range(0, len(documents), per_shard)):
        part = documents[start : start + per_shard]
        masks = trained[start : start + per_shard] if trained else [[False] + [True] * (len(d) - 1) for d in part]
        writer = ShardWriter(folder, number, np.dtype("<u2"), "test")
        writer.add(
            np.concatenate([np.array(d) for d in part]),
            np.concatenate([np.array(m, dtype=bool) for m in masks]),
            np.array([len(d) for d in part]),
        )
        writer.close()
    return TokenDataset(folder)


def texts(n: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Documents ``[eos] ... [eos]`` with tokens of 2 and up."""
    random = np.random.default_rng(seed)
    return [[EOS, *random.integers(2, 500, size=random.integers(1, longest)).tolist(), EOS] for _ in range(n)]


def loader_of(dataset, **options) -> Loader:
    return Loader(dataset, **{"seq_len": 32, "rows_per_step": 4, "seed": 1, "pad_id": PAD, **options})


def same(a: Batch, b: Batch) -> bool:
    if (a.document_ids is None) != (b.document_ids is None):
        return False
    names = ("tokens", "targets", "positions", "row_ids") + (("document_ids",) if a.document_ids is not None else ())
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.fixture
def dataset(tmp_path) -> TokenDataset:
    documents, random = texts(200), np.random.default_rng(3)
    trained = [[False, *(random.random(len(document) - 1) < 0.8)] for document in documents]
    return dataset_of(tmp_path / "shards", documents, trained, per_shard=70)


# --- the order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097, 70_000])
def test_every_epoch_is_a_permutation(size):
    for key in ("a/0", "a/1"):
        assert (np.sort(permute(np.arange(size), size, key)) == np.arange(size)).all()


def test_permutations_differ_by_key_and_mix():
    a, b = (permute(np.arange(5000), 5000, key) for key in ("data/1/0", "data/1/1"))
    assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(a, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.05


def test_an_epoch_gives_every_row_once_and_the_next_in_another_order(dataset):
    loader = loader_of(dataset, rows_per_step=1)
    epochs = [
        [int(loader.batch(e * loader.rows_per_epoch + i).row_ids) for i in range(loader.rows_per_epoch)] for e in (0, 1)
    ]
    for rows in epochs:
        assert sorted(rows) == list(range(loader.rows_per_epoch))
    assert epochs[0] != epochs[1]
    assert loader.epoch_of(loader.rows_per_epoch) == 1


def test_batch_is_a_pure_function_of_step(dataset):
    """Pitfall 26: a loader made anew, or asked in another order, gives the same batch."""
    first = loader_of(dataset)
    late = first.batch(7)
    first.batch(3)
    assert same(late, first.batch(7))
    assert same(late, loader_of(dataset).batch(7))
    assert not same(late, loader_of(dataset, seed=2).batch(7))


def test_order_follows_the_data_not_its_place(tmp_path):
    a = dataset_of(tmp_path / "a", texts(50))
    b = dataset_of(tmp_path / "b", texts(50))
    other = dataset_of(tmp_path / "c", texts(50, seed=1))
    assert same(loader_of(a).batch(3), loader_of(b).batch(3))
    assert a.fingerprint == b.fingerprint != other.fingerprint


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_together_give_the_rows_of_one(dataset, world_size):
    loader = loader_of(dataset, rows_per_step=8)
    for step in (0, 5, 1000):
        whole = loader.batch(step)
        parts = [loader.batch(step, rank, world_size) for rank in range(world_size)]
        rows = torch.cat([part.row_ids for part in parts])
        assert Counter(rows.tolist()) == Counter(whole.row_ids.tolist())
        assert sum(part.trained for part in parts) == whole.trained


def test_more_ranks_than_rows_is_refused(dataset):
    with pytest.raises(DataError, match="batch_tokens"):
        loader_of(dataset, rows_per_step=2).batch(0, rank=0, world_size=4)


def test_a_million_steps_ahead_costs_what_the_first_costs(dataset):
    """Pitfall 26: resuming is knowing the step; nothing is replayed."""
    loader = loader_of(dataset)
    loader.batch(0)

    def cost(step: int) -> tuple[float, int]:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            loader.batch(step)
            seconds.append(time.perf_counter() - began)
        tracemalloc.start()
        loader.batch(step)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return min(seconds), peak

    near, far = cost(0), cost(10**6)
    assert far[0] < 5 * near[0] + 0.005
    assert far[1] < 1.5 * near[1] + 10_000


# --- the batch ----------------------------------------------------------------------------------------------------------


def test_targets_are_the_next_trained_token_of_the_same_document(tmp_path):
    documents = [[EOS, 10, 11, EOS], [EOS, 20, EOS]]
    batch = loader_of(dataset_of(tmp_path / "s", documents), rows_per_step=1, seq_len=16).batch(0)
    assert batch.tokens.tolist() == [[EOS, 10, 11, EOS, EOS, 20, EOS, PAD]]
    assert batch.targets.tolist() == [[10, 11, EOS, IGNORE, 20, EOS, IGNORE, IGNORE]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1]]
    assert batch.trained == 5
    assert all(t.dtype == torch.int64 for t in (batch.tokens, batch.targets, batch.positions, batch.row_ids))


def test_untrained_tokens_are_no_targets(tmp_path):
    """Pitfall 3: what a user wrote is context, never a target."""
    dataset = dataset_of(tmp_path / "s", [[5, 6, 7, 8, 9]], trained=[[False, False, True, True, False]])
    assert loader_of(dataset, rows_per_step=1).batch(0).targets.tolist() == [[IGNORE, 7, 8] + [IGNORE] * 5]


def test_document_ids_are_absent_when_every_row_holds_one_document(tmp_path):
    dataset = dataset_of(tmp_path / "s", [[EOS, 10, 11, EOS], [EOS, 20, EOS]])
    batch = loader_of(dataset, rows_per_step=2, packing="none").rows_batch([0, 1])
    assert batch.document_ids is None
    assert batch.tokens.tolist() == [[EOS, 10, 11, EOS] + [PAD] * 4, [EOS, 20, EOS] + [PAD] * 5]
    assert batch.targets[1].tolist() == [20, EOS] + [IGNORE] * 6


def test_a_continued_piece_restarts_and_its_first_token_is_no_target(tmp_path):
    dataset = dataset_of(tmp_path / "s", [[EOS, *range(10, 19), EOS]])
    batch = loader_of(dataset, seq_len=8, rows_per_step=2).rows_batch([0, 1])
    assert batch.tokens.tolist() == [[EOS, *range(10, 17)], [17, 18, EOS] + [PAD] * 5]
    assert batch.targets.tolist() == [[*range(10, 17), IGNORE], [18, EOS] + [IGNORE] * 6]
    assert batch.positions[1, :3].tolist() == [0, 1, 2]


def test_without_document_mask_a_row_is_one_context(tmp_path):
    documents, trained = [[EOS, 10, EOS], [20, 21, 22]], [[False, True, True], [True, True, True]]
    dataset = dataset_of(tmp_path / "s", documents, trained)
    batch = loader_of(dataset, seq_len=16, rows_per_step=1, packing="stream", document_mask=False).batch(0)
    assert batch.document_ids is None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert batch.targets.tolist() == [[10, EOS, 20, 21, 22, IGNORE, IGNORE, IGNORE]]


def test_without_document_mask_a_piece_far_from_its_beginning_is_no_target(tmp_path):
    documents = [[EOS, *range(10, 18), EOS], [EOS, 30, 31, 32, EOS]]  # 10 tokens: 8 + 2; 5 + 2 share a row
    batch = loader_of(
        dataset_of(tmp_path / "s", documents), seq_len=8, rows_per_step=2, document_mask=False
    ).rows_batch([1])
    assert batch.tokens.tolist() == [[EOS, 30, 31, 32, EOS, 17, EOS, PAD]]
    assert batch.targets.tolist() == [[30, 31, 32, EOS, IGNORE, EOS, IGNORE, IGNORE]]


@pytest.mark.parametrize("packing", ["best_fit", "stream", "none"])
@pytest.mark.parametrize("document_mask", [True, False])
def test_an_epoch_holds_every_token_and_trains_every_trained_one(dataset, packing, document_mask):
    """Pitfalls 11 and 13: through shards, packing and batches nothing is lost and nothing doubled."""
    loader = loader_of(dataset, packing=packing, document_mask=document_mask, rows_per_step=5)
    batch = loader.rows_batch(range(loader.rows_per_epoch))
    ids, trained = dataset.read(0, dataset.n_tokens)
    assert Counter(batch.tokens[batch.tokens != PAD].tolist()) == Counter(ids.tolist())
    targets = Counter(batch.targets[batch.targets != IGNORE].tolist())
    expected = Counter(ids[trained].tolist())
    assert not targets - expected
    # What is missing is the first token of each further piece: its context stands in another row.
    further = np.flatnonzero(loader.packing.segment_offset > 0)
    firsts = dataset.starts[loader.packing.segment_document[further]] + loader.packing.segment_offset[further]
    assert len(firsts) and expected - targets == Counter(ids[firsts[trained[firsts]]].tolist())


def test_width_follows_the_longest_row(tmp_path):
    """Pitfall 11: a batch of short rows is not padded to the maximum length."""
    dataset = dataset_of(tmp_path / "s", [[EOS, 5, EOS]] * 3 + [[EOS, *range(2, 20), EOS]])
    loader = loader_of(dataset, packing="none", seq_len=1000)
    assert loader.rows_batch([0, 1]).tokens.shape == (2, 8)
    assert loader.rows_batch([0, 3]).tokens.shape == (2, 24)
    assert loader_of(dataset, packing="none", seq_len=21).rows_batch([3]).tokens.shape == (1, 21)


def test_split_gives_the_rows_in_order_and_all_trained_tokens(dataset):
    batch = loader_of(dataset, rows_per_step=7).batch(0)
    parts = batch.split(3)
    assert [len(part.tokens) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert sum(part.trained for part in parts) == batch.trained == int((batch.targets != IGNORE).sum())
    assert same(batch.to("cpu"), batch)


def test_repeat_puts_every_document_into_an_epoch_that_often(dataset):
    once, thrice = loader_of(dataset), loader_of(dataset, repeat=3)
    tokens = thrice.rows_batch(range(thrice.rows)).tokens
    assert (tokens != PAD).sum() == 3 * dataset.n_tokens
    assert once.rows < thrice.rows <= 3 * once.rows


def test_an_empty_view_is_refused(dataset):
    with pytest.raises(DataError, match="empty"):
        loader_of(dataset.view(5, 5))
