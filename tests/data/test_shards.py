"""Token shards are read as they were written, ours and datatrove's, and damage is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sproutlm.data.shards import FORMAT, ShardWriter, TokenDataset
from sproutlm.errors import DataError

DATATROVE = Path(__file__).resolve().parents[1] / "fixtures" / "datatrove"  # written by datatrove 0.10.1
DOCUMENTS = [[0, 5, 6, 0], [0, 7, 0], [0, 8, 9, 10, 0], [0, 11, 0]]


def write(folder: Path, documents=DOCUMENTS, per_shard=2, trained=None, manifest=True, dtype="<u2") -> Path:
    """Shards with as much of a manifest as reading needs."""
    folder.mkdir(exist_ok=True)
    shards = []
    for number, at in enumerate(range(0, len(documents), per_shard)):
        part = documents[at : at + per_shard]
        masks = trained[at : at + per_shard] if trained else [[False] + [True] * (len(d) - 1) for d in part]
        writer = ShardWriter(folder, number, np.dtype(dtype), "test")
        for document, mask in zip(part, masks, strict=True):
            writer.add(np.array(document), np.array(mask), np.array([len(document)]))
        shards.append(writer.close())
    if manifest:
        facts = {"max_id": max(s["max_id"] for s in shards), "vocab_size": 300, "fingerprint": "f" * 8}
        about = {"format": FORMAT, "shards": shards, "token_bytes": np.dtype(dtype).itemsize, **facts}
        (folder / "manifest.json").write_text(json.dumps(about))
    return folder


def test_documents_come_back_in_order_with_their_masks(tmp_path):
    masks = [[False, True, True, True], [False, False, True], [False] + [True] * 4, [False, True, True]]
    dataset = TokenDataset(write(tmp_path / "s", trained=masks))
    assert (dataset.n_documents, dataset.n_tokens) == (4, 15)
    assert dataset.lengths.tolist() == [4, 3, 5, 3]
    for i, (document, mask) in enumerate(zip(DOCUMENTS, masks, strict=True)):
        ids, trained = dataset.document(i)
        assert (ids.tolist(), trained.tolist()) == (document, mask)
    ids, trained = dataset.read(0, 15)
    assert ids.tolist() == sum(DOCUMENTS, []) and trained.tolist() == sum(masks, [])
    with pytest.raises(IndexError):
        dataset.document(4)


def test_loss_file_is_written_only_where_it_says_something(tmp_path):
    """Every text's first token is untrained; a byte for each token would say nothing more."""
    folder = write(tmp_path / "s", trained=[[False, True, True, True], [False, True, True], [False] + [True] * 3 + [False], [False] * 3])  # fmt: skip
    assert not (folder / "00000.ds.loss").exists()
    assert (folder / "00001.ds.loss").read_bytes() == bytes([0, 1, 1, 1, 0, 0, 0, 0])
    assert TokenDataset(folder).document(0)[1].tolist() == [False, True, True, True]
    first_trained = write(tmp_path / "t", documents=[[5, 6], [7, 8]], trained=[[True, True], [False, False]])
    assert TokenDataset(first_trained).read(0, 4)[1].tolist() == [True, True, False, False]


def test_views_number_documents_and_tokens_from_their_own_start(tmp_path):
    dataset = TokenDataset(write(tmp_path / "s"))
    view = dataset.view(1, 4)
    assert (view.n_documents, view.n_tokens, view.lengths.tolist()) == (3, 11, [3, 5, 3])
    assert view.starts.tolist() == [0, 3, 8]
    assert view.document(1)[0].tolist() == DOCUMENTS[2]
    assert view.read(1, 5)[0].tolist() == [7, 0, 0, 8]
    assert view.read(9, 99)[0].tolist() == [11, 0]
    inner = view.view(2, 3)
    assert inner.document(0)[0].tolist() == DOCUMENTS[3]
    assert view.view(0, 3).fingerprint == view.fingerprint != dataset.fingerprint
    assert dataset.view(0, 4).fingerprint == dataset.fingerprint
    assert dataset.view(0, 3).fingerprint != view.fingerprint
    with pytest.raises(DataError, match="do not exist"):
        dataset.view(2, 5)


def test_tokens_are_gathered_in_any_order_over_shards(tmp_path):
    dataset = TokenDataset(write(tmp_path / "s", per_shard=3))
    flat = np.array(sum(DOCUMENTS, []))
    order = np.random.default_rng(0).permutation(len(flat))
    assert (dataset.gather(order)[0] == flat[order]).all()


def test_empty_documents_of_others_are_documents(tmp_path):
    folder = write(tmp_path / "s", manifest=False)
    np.array([4, 4, 7], dtype="<u8").tofile(folder / "00000.ds.index")
    dataset = TokenDataset(folder)
    assert [dataset.document(i)[0].tolist() for i in range(3)] == [[0, 5, 6, 0], [], [0, 7, 0]]


def test_folders_of_datatrove_load_as_they_are():
    """uint16 and uint32, with and without .loss; no .loss: every token is trained."""
    dataset = TokenDataset(DATATROVE / "uint16")
    assert dataset.n_documents == 4
    documents = [dataset.document(i) for i in range(4)]
    assert [ids.tolist() for ids, _ in documents] == [[5, 6, 7, 1], [8, 9, 1], [10, 11, 12, 13, 1], [65535, 1]]
    assert [t.tolist() for _, t in documents] == [[True] * 4, [True] * 3, [False, False, True, True, True], [False] * 2]
    wide = TokenDataset(DATATROVE / "uint32")
    assert wide.document(0)[0].tolist() == [70000, 5, 1]
    assert len({dataset.fingerprint, wide.fingerprint}) == 2


def test_width_of_foreign_tokens_is_found_without_metadata(tmp_path):
    folder = shutil.copytree(DATATROVE / "uint32", tmp_path / "s")
    (folder / "00000_00000_shuffled.ds.metadata").unlink()
    assert TokenDataset(folder).document(0)[0].tolist() == [70000, 5, 1]


@pytest.mark.parametrize("manifest", [True, False])
def test_ids_beyond_the_vocabulary_are_refused(tmp_path, manifest):
    """Pitfall 9: a clear error before step 0; the largest id is not the size."""
    dataset = TokenDataset(write(tmp_path / "s", manifest=manifest))
    dataset.check_vocab(12)
    with pytest.raises(DataError, match=r"token id 11, but the vocabulary has 11 ids \(0 to 10\)"):
        dataset.check_vocab(11)


def damage_shard(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 2)


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


NAMES = ("00001.ds", "00000.ds.index", "00001.ds.loss")
HARMED = [(harm, name, manifest) for harm in (damage_shard, remove) for name in NAMES for manifest in (True, False)]
# Without a manifest nobody knows that these files were there.
UNKNOWABLE = [(remove, "00001.ds", False), (remove, "00001.ds.loss", False)]


@pytest.mark.parametrize(("harm", "name", "manifest"), [case for case in HARMED if case not in UNKNOWABLE])
def test_missing_or_truncated_files_are_named_at_opening(tmp_path, harm, name, manifest):
    folder = write(tmp_path / "s", trained=[[True] * 4, [False] * 3, [True] * 5, [True] * 3], manifest=manifest)
    harm(folder, name)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        TokenDataset(folder)


def test_a_flipped_bit_is_found_by_verify(tmp_path):
    folder = write(tmp_path / "s")
    TokenDataset(folder).verify()
    data = bytearray((folder / "00001.ds").read_bytes())
    data[3] ^= 1
    (folder / "00001.ds").write_bytes(data)
    with pytest.raises(DataError, match=r"00001\.ds: its checksum"):
        TokenDataset(folder).verify()


def test_an_index_that_goes_backwards_is_refused(tmp_path):
    folder = write(tmp_path / "s", manifest=False)
    np.array([5, 3, 7], dtype="<u8").tofile(folder / "00000.ds.index")
    with pytest.raises(DataError, match="backwards"):
        TokenDataset(folder)


def test_folders_that_are_no_finished_data_set_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no token shards .*sprout data prepare"):
        TokenDataset(tmp_path / "nowhere")
    unfinished = write(tmp_path / "u", manifest=False)
    (unfinished / "progress.json").write_text("{}")
    with pytest.raises(DataError, match="not finished"):
        TokenDataset(unfinished)
    broken = write(tmp_path / "b")
    for content in ("{", "[]", '{"format": 0}'):
        (broken / "manifest.json").write_text(content)
        with pytest.raises(DataError, match="manifest.json"):
            TokenDataset(broken)


def test_an_unfinished_shard_leaves_nothing_behind(tmp_path):
    writer = ShardWriter(tmp_path, 0, np.dtype("<u2"), "test")
    writer.add(np.array([1, 2]), np.array([False, True]), np.array([2]))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_opening_does_not_read_the_tokens(tmp_path):
    """Pitfall 12: the corpus stays on disk."""
    dataset = TokenDataset(write(tmp_path / "s"))
    assert all(isinstance(shard.tokens, np.memmap) for shard in dataset.shards)
