"""Preparing token shards: the same bytes whatever happens, every row accounted for, and a sentence where it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from sproutlm.config.schema import SourceConfig
from sproutlm.data import prepare as prepare_module, workers as workers_module
from sproutlm.data.encode import Encoder, encode
from sproutlm.data.prepare import prepare
from sproutlm.data.records import Text
from sproutlm.data.shards import ShardWriter, TokenDataset
from sproutlm.data.sources import Door
from sproutlm.errors import DataError
from sproutlm.tokenizer import ChatTemplate

ROWS = [{"text": f"The fox says {i} and jumps {i * 7} times over 春眠不觉晓 {'dog ' * (i % 9)}"} for i in range(120)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Many chunks from few rows."""
    monkeypatch.setattr(workers_module, "CHUNK_ROWS", 7)


@pytest.fixture
def make(tokenizer, template, tmp_path):
    """``make(path or paths, out, **options)``: prepare with small defaults; what is said is in ``make.said``."""

    def run(paths, out="out", **options) -> TokenDataset:
        sources = [p if isinstance(p, SourceConfig) else SourceConfig(path=str(p)) for p in (paths if isinstance(paths, list) else [paths])]  # fmt: skip
        run.said = []
        used = {"seq_len": 64, "shard_tokens": 1000, "workers": 1, "say": run.said.append, **options}
        own_tokenizer, own_template = used.pop("tokenizer", tokenizer), used.pop("template", template)
        return prepare(sources, own_tokenizer, own_template, tmp_path / out, **used)

    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What a folder of shards holds, memory of hashes and lock aside."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name not in (".files.json", ".lock")}


def forbid_encoding(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("rows were encoded again")

    monkeypatch.setattr(Encoder, "chunk", refuse)


# --- what is written --------------------------------------------------------------------------------------------------


def test_documents_are_the_encoded_rows_in_order(jsonl, make, tokenizer, template):
    dataset = make(jsonl(ROWS))
    assert dataset.n_documents == len(ROWS)
    for i, row in enumerate(ROWS):
        ids, trained = dataset.document(i)
        assert (ids.tolist(), trained.tolist()) == tuple(encode(Text(row["text"]), tokenizer, template))
    assert dataset.vocab_size == tokenizer.vocab_size
    dataset.check_vocab(tokenizer.vocab_size)
    dataset.verify()


def test_every_document_has_exactly_one_leading_eos(jsonl, make, tokenizer):
    """Pitfall 7."""
    dataset = make(jsonl(ROWS))
    for i in range(dataset.n_documents):
        ids = dataset.document(i)[0].tolist()
        assert ids[0] == ids[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in ids[1:-1]


def test_shards_end_at_documents_and_hold_at_most_shard_tokens(jsonl, make):
    rows = jsonl(ROWS[:30])
    dataset = make(rows, shard_tokens=300)
    tokens = [shard["tokens"] for shard in dataset.manifest["shards"]]
    assert 3 < len(tokens) < 30 and max(tokens) <= 300
    longest = make(rows, "tiny", shard_tokens=1)  # a document longer than a shard has one to itself
    assert [shard["documents"] for shard in longest.manifest["shards"]] == [1] * 30
    assert bytes_joined(dataset.path) == bytes_joined(longest.path)


def bytes_joined(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.glob("*.ds")))


def test_rows_in_are_documents_plus_drops_by_reason(tmp_path, make):
    """Pitfalls 13 and 23: nothing is lost without a word, and what trains nothing is dropped and counted."""
    rows = [
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "nobody answers"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "fox " * 200}]},
        {"messages": [{"role": "user", "content": "fox " * 200}, {"role": "assistant", "content": "no room"}]},
        {"text": "not this format"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    dataset = make(path, on_bad_row="skip")
    counts = dataset.manifest["counts"]
    assert counts["rows_in"] == 6 == dataset.n_documents + sum(counts["dropped"].values())
    assert counts["dropped"].pop("not JSON") == 1
    assert counts["dropped"].pop("prompt longer than seq_len") == 1
    assert sum(counts["dropped"].values()) == 2 and counts["truncated"] == 1
    assert dataset.manifest["lost_tokens"] > 200
    said = "\n".join(make.said)
    assert "6 rows read, 2 records" in said and "1 records truncated" in said and "tokens lost" in said
    assert "2 of 2 conversations train a stop token" in said


def test_several_sources_keep_their_order_and_repeat_counts_in_an_epoch(jsonl, make, monkeypatch):
    a, b = jsonl(ROWS[:5], "a.jsonl"), jsonl(ROWS[5:8], "b.jsonl")
    once = make([a, b])
    assert once.epoch_entries().tolist() == list(range(8))
    forbid_encoding(monkeypatch)
    thrice = make([a, SourceConfig(path=str(b), repeat=3)])
    assert thrice.epoch_entries().tolist() == [*range(5), *[5, 6, 7] * 3]
    assert thrice.view(4, 7).epoch_entries().tolist() == [0, *[1, 2] * 3]
    assert thrice.fingerprint != once.fingerprint


def test_fingerprint_follows_content_tokenizer_and_template_not_the_place(jsonl, make, tokenizer):
    first = make(jsonl(ROWS), "a")
    assert make(jsonl(ROWS, "moved/rows.jsonl"), "b").fingerprint == first.fingerprint
    assert make(jsonl(ROWS[:-1]), "c").fingerprint != first.fingerprint
    other = ChatTemplate(tokenizer.chat_template + " ", tokenizer)
    assert make(jsonl(ROWS), "d", template=other).fingerprint != first.fingerprint


def test_hold_out_must_leave_something_to_train_on(jsonl, make):
    dataset = make(jsonl(ROWS[:10]), hold_out=4)
    assert dataset.view(6, 10).n_documents == 4
    with pytest.raises(DataError, match="10 rows are to be held out, but there are only 10 documents"):
        make(jsonl(ROWS[:10]), hold_out=10)


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_bytes(jsonl, make, small_chunks, monkeypatch):
    rows = jsonl(ROWS)
    make(rows, "alone")
    alone = bytes_of(rows.parent / "alone")
    monkeypatch.setattr(workers_module, "SMALL_BYTES", 0)
    forbid_encoding(monkeypatch)  # in this process: the workers have code of their own
    make(rows, "two", workers=2)
    assert bytes_of(rows.parent / "two") == alone


def test_a_bad_row_in_a_worker_is_told_like_one_at_home(jsonl, make, small_chunks, monkeypatch):
    rows = jsonl([*ROWS[:30], {"no": "text"}, *ROWS])
    with pytest.raises(DataError, match=r"rows\.jsonl:31: ") as alone:
        make(rows, "alone")
    monkeypatch.setattr(workers_module, "SMALL_BYTES", 0)
    with pytest.raises(DataError, match=r"rows\.jsonl:31: ") as worker:
        make(rows, "two", workers=2)
    assert str(alone.value) == str(worker.value)


def test_a_worker_that_dies_is_a_sentence_not_a_hang(jsonl, make, monkeypatch, tmp_path):
    """Out of memory, the system kills a worker without a word."""
    (tmp_path / "fatal_format.py").write_text(
        "import os\nfrom sproutlm.data.formats import Format\n"
        "FORMAT = Format('fatal', lambda value: True, lambda value, columns: os._exit(9))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers_module, "SMALL_BYTES", 0)
    source = SourceConfig(path=str(jsonl(ROWS)), format="fatal_format:FORMAT")
    with pytest.raises(DataError, match="a tokenising process ended unexpectedly.*set data.workers"):
        make([source], workers=2)


def kill_self(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(target: object, name: str, call: int):
    """Replace a function by one that kills the process at its ``call``-th call."""
    original, calls = getattr(target, name), [0]

    def count_down(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            kill_self()
        return original(*args, **kwargs)

    setattr(target, name, count_down)


POINTS = {
    "while a shard is being written": (ShardWriter, "add", 20),
    "before a shard has its name": (os, "replace", 8),
    "between a shard's name and the note of it": (prepare_module, "write_json", 4),
    "before the manifest": (prepare_module, "_write_manifest", 1),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again_it_continues_to_the_same_bytes(jsonl, make, small_chunks, monkeypatch, point):
    """Pitfalls 12 and 27: kill -9 at any moment loses only the open shard, and nothing half-written passes for whole."""
    rows = jsonl(ROWS)
    make(rows, "whole")
    out = rows.parent / "killed"
    child = os.fork()
    if child == 0:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        die_at(*POINTS[point])
        try:
            make(rows, "killed")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the kill did not hit a live run"
    with pytest.raises(DataError, match="not finished"):
        TokenDataset(out)
    encoded, original = [], Encoder.chunk
    monkeypatch.setattr(Encoder, "chunk", lambda self, rows, *a: encoded.extend(rows) or original(self, rows, *a))
    make(rows, "killed")
    assert any("continuing after" in line for line in make.said)
    assert len(encoded) < len(ROWS)
    assert bytes_of(out) == bytes_of(rows.parent / "whole")


def test_a_full_disk_is_a_sentence_and_the_same_command_continues(jsonl, make, monkeypatch, tmp_path):
    rows = jsonl(ROWS)
    make(rows, "whole")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    hidden, links = ShardWriter._hidden, iter(range(100))

    def on_full_disk(self, suffix):
        if self.name != "00002.ds":
            return hidden(self, suffix)
        link = tmp_path / f"full-{next(links)}"
        link.symlink_to("/dev/full")
        return link

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "_hidden", on_full_disk)
        with pytest.raises(DataError, match="the disk is full; free some space") as raised:
            make(rows, "full")
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert {f.name for f in (tmp_path / "full").glob("*.ds")} == {"00000.ds", "00001.ds"}
    assert not list((tmp_path / "full").glob(".*tmp"))
    with pytest.raises(DataError, match="not finished"):
        TokenDataset(tmp_path / "full")
    make(rows, "full")
    assert any("continuing after 2 finished" in line for line in make.said)
    assert bytes_of(tmp_path / "full") == bytes_of(tmp_path / "whole")


# --- used again -------------------------------------------------------------------------------------------------------


def test_unchanged_data_are_reused_and_that_is_said(jsonl, make, monkeypatch):
    """Pitfall 12: no second tokenising at each start."""
    rows = jsonl(ROWS)
    first = make(rows)
    forbid_encoding(monkeypatch)
    for _ in range(2):  # the second time hashes are remembered
        again = make(rows)
        assert make.said[0].startswith("reusing the token shards") and again.fingerprint == first.fingerprint
    os.utime(rows)  # touched, but the same
    make(rows)


def test_one_byte_of_the_same_size_and_time_is_noticed(jsonl, make):
    rows = jsonl(ROWS)
    first, stat = make(rows), rows.stat()
    rows.write_bytes(rows.read_bytes().replace(b"The fox says 5 ", b"The fox says 6 "))
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (rows.stat().st_size, rows.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    second = make(rows)
    assert second.fingerprint != first.fingerprint
    assert second.document(5)[0].tolist() != first.document(5)[0].tolist()


@pytest.mark.parametrize(
    "change", [{"seq_len": 32}, {"on_long": "drop"}, {"shard_tokens": 777}, {"on_bad_row": "skip"}]
)
def test_other_options_are_prepared_anew(jsonl, make, change):
    rows = jsonl(ROWS)
    make(rows)
    dataset = make(rows, **change)
    assert any("they are made again" in line for line in make.said)
    assert dataset.manifest["options"].items() >= change.items()
    make(rows, "fresh", **change)
    assert bytes_of(rows.parent / "out") == bytes_of(rows.parent / "fresh")


def test_a_damaged_shard_is_made_again(jsonl, make):
    rows = jsonl(ROWS)
    dataset = make(rows)
    before = bytes_of(dataset.path)
    data = bytearray((dataset.path / "00001.ds").read_bytes())
    data[10] ^= 1
    (dataset.path / "00001.ds").write_bytes(data)
    make(rows)
    assert any("00001.ds: damaged" in line for line in make.said)
    assert bytes_of(dataset.path) == before


# --- refused ----------------------------------------------------------------------------------------------------------


def test_conversations_that_never_train_a_stop_token_are_refused(jsonl, make, tokenizer):
    """Pitfall 1: a model trained on them would never end an answer."""
    source = tokenizer.chat_template.replace("{{- '<|im_end|>' }}", "", 1)
    rows = jsonl([{"instruction": "2 + 2?", "output": "4"}] * 3)
    with pytest.raises(DataError, match="none of 3 conversations trains a stop token"):
        make(rows, template=ChatTemplate(source, tokenizer))
    make(rows)


def test_shards_of_another_program_are_not_overwritten(jsonl, make, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.ds").write_bytes(b"precious")
    with pytest.raises(DataError, match="did not write"):
        make(jsonl(ROWS))
    assert (tmp_path / "out" / "00000.ds").read_bytes() == b"precious"


@pytest.mark.skipif(os.name == "nt", reason="needs flock")
def test_two_processes_do_not_write_into_one_folder(jsonl, make, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            make(jsonl(ROWS))
    make(jsonl(ROWS))


def test_a_folder_without_permission_is_a_sentence(make, open_folder, ordinary_user):
    rows = open_folder / "rows.jsonl"
    rows.write_text(json.dumps(ROWS[0]) + "\n")
    rows.chmod(0o644)
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    with ordinary_user(), pytest.raises(DataError, match="it cannot be written; grant the permission"):
        make(rows, closed / "out")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_reading_ahead_is_bounded(monkeypatch):
    """Pitfall 12: however long the file, only a few chunks per worker are in memory."""
    read, given = [0], [0]

    class Done:
        def result(self):
            class Chunk:
                tokens: tuple = ()

            return Chunk()

    class Pool:
        def submit(self, *_):
            return Done()

    def endless():
        for _ in range(500):
            read[0] += 1
            yield workers_module.Part()

    encoding = workers_module.Encoding(None, Pool(), 2, workers_module._Progress(1, print))
    for _ in workers_module.encode_chunks(encoding, endless(), Door("text")):
        given[0] += 1
        assert read[0] - given[0] <= 2 * workers_module.IN_FLIGHT
    assert given[0] == 500


def test_progress_is_said_after_two_seconds_with_what_is_left(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(workers_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(workers_module.sys.stderr, "isatty", lambda: False, raising=False)
    with workers_module._Progress(1_000_000, said.append) as progress:
        for _ in range(10):
            now[0] += 1.0
            progress.add(50_000, 10, 100)
    assert len(said) == 1 and "about 10%" in said[0] and "ETA 18 s" in said[0]


def test_expected_bytes_of_a_gz_are_those_before_compression(tmp_path):
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 100_000))
    assert workers_module.expected_bytes([path]) == 100_000
