"""Whatever ends a run of ``prepare`` or harms what it made, the same command makes the same bytes: the costly cases, with
real processes and a real disk. (The quick ones are in ``test_prepare.py``.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sproutlm
from sproutlm.config.schema import SourceConfig
from sproutlm.data import workers
from sproutlm.data.encode import Encoder
from sproutlm.data.prepare import prepare
from sproutlm.data.shards import TokenDataset
from sproutlm.errors import DataError

N_ROWS = 1000  # four chunks
ROWS = [{"text": f"春眠不觉晓，处处闻啼鸟。 {i} " * (1 + i % 3)} for i in range(N_ROWS)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    """A thousand rows are four chunks, so that there is a middle to be interrupted in."""
    monkeypatch.setattr(workers, "CHUNK_ROWS", 256)


@pytest.fixture
def source(jsonl) -> Path:
    return jsonl(ROWS, "source.jsonl")


@pytest.fixture
def make(tokenizer, template, source):
    """``make(out)`` prepares the rows at ``out`` into 5 shards; returns the data set and what was said."""

    def run(out: Path, path: Path = source):
        said: list[str] = []
        dataset = prepare(
            [SourceConfig(path=str(path))],
            tokenizer,
            template,
            out,
            seq_len=64,
            shard_tokens=4000,
            workers=1,
            say=said.append,
        )
        return dataset, said

    return run


@pytest.fixture
def whole(make, tmp_path) -> dict[str, bytes]:
    """Every file of a run that nothing disturbed."""
    out = tmp_path / "undisturbed"
    dataset, _ = make(out)
    assert dataset.n_documents == N_ROWS and len(dataset.shards) > 4
    return bytes_of(out)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Contents of the files that make up the data set; hidden ones are the program's notes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def left_overs(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def counting(monkeypatch, fail_after: int | None = None) -> list[int]:
    """Rows of each chunk that is encoded from now on; Ctrl-C comes after ``fail_after`` chunks."""
    encoded: list[int] = []
    original = Encoder.chunk

    def chunk(self, rows, *arguments):
        if len(encoded) == fail_after:
            raise KeyboardInterrupt
        encoded.append(len(rows))
        return original(self, rows, *arguments)

    monkeypatch.setattr(Encoder, "chunk", chunk)
    return encoded


# --- interrupted ------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_after_its_finished_shards(make, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        counting(patch, fail_after=2)
        with pytest.raises(KeyboardInterrupt):
            make(out)
    finished = {path.name: path.stat().st_ino for path in out.glob("*.ds")}
    assert len(finished) >= 2 and not left_overs(out)
    with pytest.raises(DataError, match="not finished; run the same command again"):
        TokenDataset(out)

    encoded = counting(monkeypatch)
    _, said = make(out)
    assert f"continuing after {len(finished)} finished token shards at {out}" in said
    assert sum(encoded) < N_ROWS, "rows of finished shards were tokenised again"
    assert all((out / name).stat().st_ino == inode for name, inode in finished.items())
    assert bytes_of(out) == whole


CHILD = """
import os, sys, time, multiprocessing
from pathlib import Path
from sproutlm.config.schema import SourceConfig
from sproutlm.data import workers
from sproutlm.data.prepare import prepare
from sproutlm.tokenizer import ChatTemplate, Tokenizer

if __name__ == "__main__":
    folder, source, out, place, times = sys.argv[1:]
    times, rename = int(times), os.replace

    def replace(old, new):
        # stop dead just before PLACE gets its name for the n-th time
        global times
        times -= Path(new).name == place
        if times == 0:
            print("here", *(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(600)
        rename(old, new)

    os.replace = replace
    workers.SMALL_BYTES, workers.CHUNK_ROWS = 0, 256
    tokenizer = Tokenizer.load(folder)
    prepare([SourceConfig(path=source)], tokenizer, ChatTemplate.of(tokenizer), Path(out), seq_len=64,
            shard_tokens=4000, workers=2)
"""


@pytest.fixture
def killed_at(tokenizer, source, tmp_path):
    """``killed_at(out, place, times)``: run ``prepare`` in another process, with two workers, and kill -9 it at
    that rename. Returns the ids of its workers."""

    def run(out: Path, place: str, times: int) -> list[int]:
        tokenizer.save(tmp_path / "tokenizer")
        script = tmp_path / "child.py"
        script.write_text(CHILD)
        arguments = [tmp_path / "tokenizer", source, out, place, times]
        environment = {**os.environ, "PYTHONPATH": str(Path(sproutlm.__file__).parents[1])}
        child = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
        )
        with child:
            said = iter(child.stdout.readline, "")
            line = next((line for line in said if line.startswith("here")), None)
            assert line is not None, "the run ended before it came to the place where it was to be killed"
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        return [int(pid) for pid in line.split()[1:]]

    return run


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process lives")
@pytest.mark.parametrize(
    ("place", "times", "finished"),
    [
        ("00002.ds.index", 1, 2),  # in the middle of giving a shard's files their names
        ("manifest.json", 1, 5),  # everything is there but the manifest
    ],
)
def test_a_killed_run_takes_its_workers_along_and_goes_on(killed_at, make, whole, tmp_path, place, times, finished):
    """A process of its own, killed -9. Its workers wait for work that nobody will send: left alone, they would hold
    their memory for ever."""
    out = tmp_path / "out"
    pids = killed_at(out, place, times)
    assert len(pids) == (2 if place != "manifest.json" else 0)
    with pytest.raises(DataError, match="not finished"):
        TokenDataset(out)
    inodes = [(out / f"{i:05d}.ds").stat().st_ino for i in range(finished)]
    _, said = make(out)
    assert f"continuing after {finished} finished token shards at {out}" in said
    assert [(out / f"{i:05d}.ds").stat().st_ino for i in range(finished)] == inodes
    assert bytes_of(out) == whole and not left_overs(out)
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_made_again_and_the_ones_before_it_are_kept(make, whole, tmp_path, harm):
    out = tmp_path / "out"
    make(out)
    first = (out / "00000.ds").stat().st_ino
    victim = out / "00002.ds"
    data = bytearray(victim.read_bytes())
    data[10] ^= 1
    if harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes(data if harm == "flip" else data[:-2])
    _, said = make(out)
    assert any(line.startswith(f"{victim}: damaged or missing") for line in said)
    assert f"continuing after 2 finished token shards at {out}" in said
    assert (out / "00000.ds").stat().st_ino == first
    assert bytes_of(out) == whole


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_manifest_is_made_again(make, whole, tmp_path, content):
    out = tmp_path / "out"
    make(out)
    (out / "manifest.json").write_text(content)
    make(out)
    assert bytes_of(out) == whole


# --- no room ------------------------------------------------------------------------------------------------


def check_unfinished(out: Path) -> None:
    assert not left_overs(out), "half-written files were left on a full disk"
    with pytest.raises(DataError, match="not finished|no token shards"):
        TokenDataset(out)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 80 KB, and a way to make it larger."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not possible here")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(make, whole, small_disk):
    folder, enlarge = small_disk
    out = folder / "out"
    with pytest.raises(DataError, match="disk/out: the disk is full"):
        make(out)
    assert list(out.glob("*.ds")), "it filled before a first shard was whole: the disk of this test is too small"
    check_unfinished(out)
    enlarge()
    _, said = make(out)
    assert any(line.startswith("continuing after") for line in said)
    assert bytes_of(out) == whole


def test_finished_shards_are_reused_without_the_right_to_write(make, open_folder, ordinary_user, jsonl):
    rows, out = open_folder / "rows.jsonl", open_folder / "shared"
    rows.write_bytes(jsonl(ROWS[:10]).read_bytes())
    made, _ = make(out, path=rows)
    out.chmod(0o555)
    with ordinary_user():
        dataset, said = make(out, path=rows)
    assert dataset.fingerprint == made.fingerprint and any("reusing" in line for line in said)
