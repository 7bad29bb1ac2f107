"""Large, odd and changing input of ``prepare``: bounded memory, huge rows, line ends, sources that give nothing."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from sproutlm.config.schema import SourceConfig
from sproutlm.data import prepare as prepare_module, workers
from sproutlm.data.encode import Encoder
from sproutlm.data.loader import Loader
from sproutlm.data.prepare import prepare
from sproutlm.errors import DataError
from sproutlm.tokenizer import ChatTemplate

MEGABYTE = 1 << 20


@pytest.fixture
def make(tokenizer, template, tmp_path):
    """``make(*paths)``: prepare with small defaults; what is said is in ``make.said``."""

    def run(*paths, out="out", **options):
        run.said = []
        used = {
            "seq_len": 64,
            "workers": 1,
            "say": run.said.append,
            "template": template,
            "tokenizer": tokenizer,
            **options,
        }
        sources = [SourceConfig(path=str(path)) for path in paths]
        return prepare(sources, used.pop("tokenizer"), used.pop("template"), tmp_path / out, **used)

    return run


class EightCharactersAToken:
    """Stands in for a tokenizer where only the reading, not the encoding, is measured."""

    vocab_size, eos_id, fingerprint = 300, 0, "eight"

    def encode_batch(self, texts):
        return [[7] * (len(text) // 8) for text in texts]


def test_a_corpus_of_20_mb_is_prepared_in_bounded_memory(tmp_path, make):
    """Pitfall 12: what is held is a few chunks, not the file."""
    source = tmp_path / "large.jsonl"
    line = json.dumps({"text": "the quick brown fox " * 100}) + "\n"
    with open(source, "w") as f:
        for _ in range(20 * MEGABYTE // len(line) + 1):
            f.write(line)
    assert source.stat().st_size > 20 * MEGABYTE
    tracemalloc.start()
    dataset = make(source, tokenizer=EightCharactersAToken())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dataset.n_tokens > 20 * MEGABYTE / 9
    assert peak < 8 * MEGABYTE


def test_a_chunk_is_bounded_in_size_as_well_as_in_rows():
    """Pitfall 12: also where rows come parsed, as from parquet, and where their text lies deep inside."""

    class Row:
        def __init__(self, payload):
            self.payload = payload

    turns = {"messages": [{"role": "user", "content": "x" * 100_000}]}
    for payload in ("x" * 100_000, {"text": "x" * 100_000}, turns, "春" * 33_334):
        sizes = [len(chunk) for chunk in workers.chunks(Row(payload) for _ in range(100))]
        assert sum(sizes) == 100 and max(sizes) <= 11
    assert [len(chunk) for chunk in workers.chunks(Row("x") for _ in range(2400))] == [1024, 1024, 352]


def test_a_row_of_a_million_characters_is_split_without_loss(jsonl, make, tokenizer):
    text = "hello world, 你好 " * 71_429
    assert len(text) > 1_000_000
    dataset = make(jsonl([{"text": "before"}, {"text": text}, {"text": "after"}]))
    ids, trained = dataset.document(1)
    assert tokenizer.decode(ids) == text
    assert trained.sum() == len(ids) - 1
    loader = Loader(dataset, seq_len=64, rows_per_step=1, seed=0)
    assert loader.packing.segment_length.sum() == dataset.n_tokens
    assert any("1 texts longer than seq_len" in line for line in make.said)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_the_file_change_neither_tokens_nor_line_numbers(tmp_path, make, tokenizer, end):
    """Pitfall 12: offsets counted in text mode are wrong on CRLF."""
    rows = [json.dumps({"text": f"春眠不觉晓 {i}\r\n"}, ensure_ascii=False) for i in range(5)]
    source = tmp_path / f"rows{len(end)}.jsonl"
    source.write_bytes(end.join([*rows, ""]).encode())
    dataset = make(source)
    assert [tokenizer.decode(dataset.document(i)[0]) for i in range(5)] == [json.loads(row)["text"] for row in rows]
    source.write_bytes(end.join([*rows, "{", ""]).encode())
    with pytest.raises(DataError, match=rf"rows{len(end)}\.jsonl:6: not JSON"):
        make(source)


def test_a_source_of_which_nothing_is_left_is_refused_by_name(jsonl, make):
    """Pitfall 13: the other sources must not cover for it."""
    good = jsonl([{"text": "hello"}], "good.jsonl")
    long = jsonl([{"text": "hello " * 100}] * 3, "long.jsonl")
    with pytest.raises(DataError, match=r"long\.jsonl: none of its 3 rows can be used \(longer than seq_len 3\)"):
        make(good, long, on_long="drop")
    assert make(good, on_long="drop").n_documents == 1


def test_a_folder_with_unknown_files_says_so_also_after_an_interruption(tmp_path, jsonl, make, monkeypatch):
    for name in ("data/a.jsonl", "data/b.jsonl"):
        jsonl([{"text": f"hello {i}"} for i in range(300)], name)
    (tmp_path / "data" / "notes.md").write_text("not data")
    monkeypatch.setattr(workers, "CHUNK_ROWS", 256)
    original, calls = Encoder.chunk, []

    def chunk(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Encoder, "chunk", chunk)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "data", shard_tokens=500)
    dataset = make(tmp_path / "data", shard_tokens=500)
    assert dataset.manifest["counts"]["ignored_files"] == 1 and dataset.n_documents == 600


def test_a_source_that_changes_while_it_is_read_is_refused(jsonl, make, monkeypatch):
    """The manifest would vouch for bytes that are no longer there."""
    source = jsonl([{"text": f"hello {i}"} for i in range(10)])
    original = Encoder.chunk

    def chunk(self, *arguments):
        with open(source, "a") as f:
            f.write('{"text": "one more"}\n')
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "chunk", chunk)
        with pytest.raises(DataError, match=r"rows\.jsonl: the file changed while it was being read"):
            make(source)
    assert make(source).n_documents == 11


def test_conversations_that_never_stop_are_refused_before_all_are_tokenised(jsonl, make, tokenizer, monkeypatch):
    """Pitfall 1: nobody should wait an hour for this sentence."""
    monkeypatch.setattr(prepare_module, "EARLY_CHATS", 10)
    monkeypatch.setattr(workers, "CHUNK_ROWS", 10)
    source = tokenizer.chat_template.replace("{{- '<|im_end|>' }}", "", 1)
    rows = jsonl([{"instruction": f"{i} + {i}?", "output": str(2 * i)} for i in range(60)])
    with pytest.raises(DataError, match="none of 10 conversations trains a stop token"):
        make(rows, template=ChatTemplate(source, tokenizer))


def test_chat_rows_without_a_template_stop_the_run(jsonl, make, tokenizer):
    """Pitfall 14: never trained as JSON text."""
    rows = jsonl([{"instruction": "2 + 2?", "output": "4"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*no chat template"):
        make(rows, template=ChatTemplate(None, tokenizer))
    with pytest.raises(DataError, match="none of its 1 rows can be used"):
        make(rows, template=ChatTemplate(None, tokenizer), on_bad_row="skip")


def test_the_eta_after_an_interruption_is_of_what_is_left(monkeypatch):
    """Bytes that an earlier run has done took this one no time."""
    now, said = [0.0], []
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(workers.sys.stderr, "isatty", lambda: False, raising=False)
    with workers._Progress(1_000_000, said.append) as progress:
        progress.at_start = 500_000
        now[0] = 10.0
        progress.add(100_000, 10, 100)
    assert len(said) == 1 and "about 60%" in said[0] and "ETA 40 s" in said[0]


def test_ids_of_a_large_vocabulary_keep_their_value(jsonl, make, template):
    class Large(EightCharactersAToken):
        vocab_size, fingerprint = 70_000, "large"

        def encode_batch(self, texts):
            return [[65_535, 65_536, 69_999] for _ in texts]

    dataset = make(jsonl([{"text": "a"}]), tokenizer=Large())
    assert dataset.document(0)[0].tolist() == [0, 65_535, 65_536, 69_999, 0]
    assert dataset.shards[0].tokens.dtype == np.dtype("<u4")
