"""Ready-made token streams are used where they lie, and read exactly as if this program had encoded their texts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from token_streams import datatrove, flat, llm_c, megatron

from sproutlm.config.schema import SourceConfig
from sproutlm.data import token_files
from sproutlm.data.inspect import inspect_file
from sproutlm.data.loader import Loader
from sproutlm.data.prepare import prepare
from sproutlm.data.shards import TokenDataset
from sproutlm.data.token_files import find_documents, is_token_source, open_token_file
from sproutlm.errors import DataError

DOCUMENTS = ["The quick brown fox.", "春眠不觉晓，处处闻啼鸟。", "What is 2 + 2?", "a", "The answer is 4. " * 9]


@pytest.fixture
def make(tmp_path, tokenizer, template):
    def run(*sources, out="out", seq_len=64, **options):
        said: list[str] = []
        used = [s if isinstance(s, SourceConfig) else SourceConfig(path=str(s)) for s in sources]
        dataset = prepare(used, tokenizer, template, tmp_path / out, seq_len=seq_len, say=said.append, **options)
        return dataset, said

    return run


@pytest.fixture
def encoded(tokenizer):
    return [tokenizer.encode(text) for text in DOCUMENTS]


KINDS = {
    "nanoGPT, uint16": lambda folder, *a: flat(folder / "train.bin", *a),
    "uint32": lambda folder, *a: flat(folder / "train.bin", *a, dtype="<u4"),
    "begins with the end token": lambda folder, *a: flat(folder / "train.bin", *a, leading=True),
    "llm.c": lambda folder, *a: llm_c(folder / "train.bin", *a),
    "datatrove": lambda folder, *a: datatrove(folder / "tokenized", *a),
    "Megatron": lambda folder, *a: megatron(folder / "corpus_text_document", *a),
    "Megatron, uint16": lambda folder, *a: megatron(folder / "corpus_text_document", *a, dtype="<u2", code=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_those_of_the_texts_themselves(tmp_path, jsonl, make, encoded, tokenizer, kind):
    """Every kind of stream gives the documents, masks and batches that encoding the same texts gives.

    Two ends of a stream hold less: nothing precedes the first document of most, nothing follows the last of llm.c's.
    """
    path = KINDS[kind](tmp_path, encoded, tokenizer.eos_id)
    ours, _ = make(jsonl([{"text": text} for text in DOCUMENTS]), out="texts")
    theirs, said = make(path, out="tokens")
    assert theirs.n_documents == ours.n_documents == len(DOCUMENTS)
    assert sum(file.stat().st_size for file in (tmp_path / "tokens").glob("*.ds")) == 0, "nothing is copied"
    assert any("used where they lie" in line for line in said)
    for i in range(len(DOCUMENTS)):
        (ids, trained), (ids_, trained_) = ours.document(i), theirs.document(i)
        if i == 0 and kind not in ("begins with the end token", "llm.c"):
            ids, trained = ids[1:], np.concatenate([[False], trained[2:]])
        if i == len(DOCUMENTS) - 1 and kind == "llm.c":
            ids, trained = ids[:-1], trained[:-1]
        assert ids_.tolist() == ids.tolist() and trained_.tolist() == trained.tolist()
    assert theirs.manifest["counts"]["records_out"] == len(DOCUMENTS)
    assert theirs.manifest["trained_tokens"] == sum(int(theirs.document(i)[1].sum()) for i in range(len(DOCUMENTS)))


def test_an_end_token_of_ones_own_and_consecutive_ends(tmp_path, make, tokenizer):
    (tmp_path / "x.bin").write_bytes(np.array([9, 9, 5, 6, 9, 9, 7, 8], dtype="<u2").tobytes())
    source = SourceConfig(path=str(tmp_path / "x.bin"), columns={"eos": 9, "dtype": "uint16"})
    dataset, said = make(source)
    assert [dataset.document(i)[0].tolist() for i in range(dataset.n_documents)] == [[9, 5, 6, 9], [9, 7, 8]]
    assert dataset.manifest["counts"]["dropped"] == {"empty": 2}
    assert any("1 documents (25.0%) do not end in the end token" in line for line in said)


def test_a_mask_beside_the_tokens_is_honoured(tmp_path, make, encoded, tokenizer):
    loss = [i % 3 == 0 for d in encoded for i in range(len(d) + 1)]
    dataset, _ = make(datatrove(tmp_path / "ds", encoded, tokenizer.eos_id, loss))
    got = np.concatenate([dataset.document(i)[1][0 if i == 0 else 1 :] for i in range(dataset.n_documents)])
    expected = np.array(loss)
    expected[0] = False  # a document's first token is never a target
    assert got.tolist() == expected.tolist()


def test_shards_of_this_program_are_a_source_as_they_are(tmp_path, jsonl, make):
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": t}]} for t in DOCUMENTS]
    ours, _ = make(jsonl([{"text": text} for text in DOCUMENTS], "a.jsonl"), jsonl(chats, "b.jsonl"), out="first")
    again, _ = make(tmp_path / "first", out="second")
    for i in range(ours.n_documents):
        assert [x.tolist() for x in again.document(i)] == [x.tolist() for x in ours.document(i)]


def test_mixed_with_texts_in_order_with_repeat_and_held_out_rows(tmp_path, jsonl, make, encoded, tokenizer):
    texts = jsonl([{"text": "hello"}, {"text": "world"}])
    path = flat(tmp_path / "x.bin", encoded, tokenizer.eos_id)
    sources = [texts, SourceConfig(path=str(path), repeat=3, max_rows=4), texts]
    dataset, _ = make(*sources, hold_out=1)
    shown = [tokenizer.decode(dataset.document(i)[0].tolist()) for i in range(dataset.n_documents)]
    assert shown == ["hello", "world", *DOCUMENTS[:4], "hello", "world"]
    assert dataset.epoch_entries().tolist() == [0, 1, *[2, 3, 4, 5] * 3, 6, 7]
    part = dataset.view(3, 7)
    assert [tokenizer.decode(part.document(i)[0].tolist()) for i in range(4)] == [*DOCUMENTS[1:4], "hello"]
    batch = Loader(part, seq_len=64, rows_per_step=2, seed=0).rows_batch([0])
    assert batch.trained == sum(int(part.document(i)[1].sum()) for i in part.epoch_entries())
    reused, said = make(*sources)
    assert "reusing" in said[0] and reused.fingerprint == dataset.fingerprint


def test_without_a_document_mask_an_end_token_is_trained_once(tmp_path, make, encoded, tokenizer):
    """Documents share their end tokens; in a row of several, the leading copy is no target."""
    dataset, _ = make(flat(tmp_path / "x.bin", encoded, tokenizer.eos_id), seq_len=256)
    loader = Loader(dataset, seq_len=256, rows_per_step=1, seed=0, packing="stream", document_mask=False)
    targets = loader.rows_batch(range(loader.rows)).targets
    assert int((targets == tokenizer.eos_id).sum()) == len(DOCUMENTS)


def test_an_interrupted_run_goes_on_to_the_same_data(tmp_path, jsonl, make, encoded, tokenizer, monkeypatch):
    sources = [flat(tmp_path / "x.bin", encoded, tokenizer.eos_id), jsonl([{"text": "hello"}])]
    whole, _ = make(*sources, out="whole")
    from sproutlm.data.encode import Encoder

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "chunk", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(*sources)
    again, said = make(*sources)
    assert any("continuing after 1 finished" in line for line in said)
    assert again.fingerprint == whole.fingerprint


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_id_past_the_vocabulary_is_named_with_its_file_and_place(tmp_path, make, tokenizer):
    """Pitfall 9."""
    (tmp_path / "x.bin").write_bytes(np.array([5, 6, tokenizer.vocab_size, 7], dtype="<u2").tobytes())
    with pytest.raises(DataError, match=rf"x\.bin: token 2 is the id {tokenizer.vocab_size}, but the tokenizer has"):
        make(tmp_path / "x.bin")
    assert not list((tmp_path / "out").glob("*.spans")) and not list((tmp_path / "out").glob("manifest.json"))


def test_the_highest_id_itself_is_taken(tmp_path, make, tokenizer):
    (tmp_path / "x.bin").write_bytes(np.array([5, tokenizer.vocab_size - 1, 7], dtype="<u2").tobytes())
    make(tmp_path / "x.bin")[0].check_vocab(tokenizer.vocab_size)


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


@pytest.mark.parametrize(
    ("kind", "file", "by", "sentence"),
    [
        ("nanoGPT, uint16", "train.bin", 1, "not a multiple of 2"),
        ("llm.c", "train.bin", 6, "its header promises"),
        ("datatrove", "tokenized/00000_unshuffled.ds", 2, "where its index promises"),
        ("datatrove", "tokenized/00000_unshuffled.ds.index", 3, "cut short"),
        ("Megatron", "corpus_text_document.bin", 4, r"where its \.idx promises"),
        ("Megatron", "corpus_text_document.idx", 8, "cut short"),
        ("Megatron", "corpus_text_document.idx", 1000, "MMIDIDX|cut short"),
    ],
)
def test_a_file_cut_short_is_a_sentence(tmp_path, make, encoded, tokenizer, kind, file, by, sentence):
    path = KINDS[kind](tmp_path, encoded, tokenizer.eos_id)
    cut(tmp_path / file, min(by, (tmp_path / file).stat().st_size))
    with pytest.raises(DataError, match=sentence):
        make(path)


def test_a_wrong_dtype_is_a_sentence_with_the_cure(tmp_path, make, encoded, tokenizer):
    path = flat(tmp_path / "x.bin", encoded * 4, tokenizer.eos_id, dtype="<u4")
    with pytest.raises(DataError, match=r"holds uint32; set columns: \{dtype: uint32\}"):
        make(SourceConfig(path=str(path), columns={"dtype": "uint16"}))
    path = flat(tmp_path / "y.bin", encoded * 4, tokenizer.eos_id)
    with pytest.raises(DataError, match=r"y\.bin: (.* is the id|.*not a multiple of 4)"):
        make(SourceConfig(path=str(path), columns={"dtype": "uint32"}))
    with pytest.raises(DataError, match="columns.dtype is 'float16'; choose among"):
        make(SourceConfig(path=str(path), columns={"dtype": "float16"}))
    with pytest.raises(DataError, match="columns.text means nothing for token files"):
        make(SourceConfig(path=str(path), columns={"text": "x"}))


def test_a_file_that_changed_after_it_was_looked_through_is_noticed(tmp_path, make, encoded, tokenizer):
    path = flat(tmp_path / "x.bin", encoded, tokenizer.eos_id)
    make(path)
    content = path.read_bytes()
    path.write_bytes(content)  # touched, and the same
    TokenDataset(tmp_path / "out")
    path.write_bytes(content[::-1])
    with pytest.raises(DataError, match=r"x\.bin: changed since the data was prepared"):
        TokenDataset(tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"x\.bin: this token file is used where it lies and is gone"):
        TokenDataset(tmp_path / "out")


@pytest.mark.parametrize("policy", ["auto", "split", "drop", "error", "truncate"])
def test_documents_longer_than_a_row(tmp_path, make, encoded, tokenizer, policy):
    path = flat(tmp_path / "x.bin", encoded, tokenizer.eos_id)
    if policy in ("error", "truncate"):
        with pytest.raises(DataError, match=r"x\.bin: document 5 has .* more than seq_len=30"):
            make(path, seq_len=30, on_long=policy)
        return
    dataset, _ = make(path, seq_len=30, on_long=policy)
    manifest = dataset.manifest
    if policy == "drop":
        assert manifest["counts"]["dropped"] == {"longer than seq_len": 1} and dataset.n_documents == 4
        assert manifest["lost_tokens"] == len(encoded[4]) + 2
    else:
        assert manifest["split"] == 1 and dataset.n_documents == 5


# --- finding, bounded memory, inspect ---------------------------------------------------------------------------------


def test_token_sources_are_known_by_their_files(tmp_path, jsonl, encoded, tokenizer):
    rows = jsonl([{"text": "a"}])
    megatron(tmp_path / "corpus", encoded, tokenizer.eos_id)
    datatrove(tmp_path / "ds", encoded, tokenizer.eos_id)
    known = {
        str(tmp_path / "corpus"): True,
        str(tmp_path / "corpus.idx"): True,
        str(tmp_path / "*.bin"): True,
        str(tmp_path / "ds"): True,
        str(rows): False,
        str(tmp_path / "nothing"): False,
    }
    assert {path: is_token_source(SourceConfig(path=path)) for path in known} == known


def test_looking_for_documents_holds_a_part_at_a_time(tmp_path, encoded, tokenizer, monkeypatch):
    path = flat(tmp_path / "x.bin", encoded * 50, tokenizer.eos_id)
    file = open_token_file(path, SourceConfig(path=str(path)), tokenizer.vocab_size)
    whole = find_documents(file, tokenizer.eos_id, tokenizer.vocab_size)
    monkeypatch.setattr(token_files, "SCAN_TOKENS", 7)
    seen: list[int] = []
    scan = token_files._scan
    monkeypatch.setattr(token_files, "_scan", lambda *a: ((seen.append(len(t)), (at, t))[1] for at, t in scan(*a)))
    parts = find_documents(file, tokenizer.eos_id, tokenizer.vocab_size)
    assert max(seen) == 7
    assert parts.starts.tolist() == whole.starts.tolist() and parts.lengths.tolist() == whole.lengths.tolist()
    seen.clear()
    few = find_documents(file, tokenizer.eos_id, tokenizer.vocab_size, max_documents=3)
    assert few.lengths.tolist() == whole.lengths[:3].tolist() and sum(seen) < 200


def test_inspect_shows_the_documents_of_a_token_file(tmp_path, encoded, tokenizer):
    path = flat(tmp_path / "x.bin", encoded, tokenizer.eos_id)
    tokenizer.save(tmp_path / "tokenizer")
    report = inspect_file(path, tmp_path / "tokenizer", rows=2)
    assert report["format"] == "tokens (flat, uint16)"
    assert report["rows"][1]["text"].count("<|endoftext|>") == 2 and DOCUMENTS[1] in report["rows"][1]["text"]
    assert report["statistics"]["rows"] == len(DOCUMENTS)
    assert json.dumps(report)
    with pytest.raises(
        DataError, match=r"x\.bin: holds token ids; name the folder of their tokenizer with --tokenizer"
    ):
        inspect_file(path)


def test_a_folder_of_several_files_is_taken_in_order(tmp_path, make, encoded, tokenizer):
    folder = tmp_path / "many"
    folder.mkdir()
    for i, document in enumerate(encoded):
        flat(folder / f"part-{i}.bin", [document], tokenizer.eos_id)
    shutil.copy(folder / "part-0.bin", folder / "part-9.bin")
    dataset, _ = make(folder)
    texts = [tokenizer.decode(dataset.document(i)[0].tolist()) for i in range(dataset.n_documents)]
    assert texts == [*DOCUMENTS, DOCUMENTS[0]]
    limited, _ = make(SourceConfig(path=str(folder), max_rows=2), out="few")
    assert limited.n_documents == 2
