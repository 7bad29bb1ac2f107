"""Downloads from Hugging Face through its own library, against a server that speaks its interface."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, FakeHub, sha256

from sproutlm.hub.checksums import RECEIPT

SPROUT = Callable[..., Any]
TRAIN = b"".join(b'{"text": "story %d"}\n' % number for number in range(20_000))


@pytest.fixture
def tiny(fake_hub: FakeHub) -> FakeHub:
    fake_hub.repositories["datasets/acme/tiny"] = {
        "README.md": b"# tiny\n",
        "data/train.jsonl": TRAIN,
        "data/test.jsonl": b'{"text": "x"}\n',
        "tiny.py": b"print(1)\n",
    }
    return fake_hub


def test_a_download_is_whole_and_its_receipt_says_what_came(tiny: FakeHub, sprout: SPROUT, tmp_path: Path) -> None:
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--json", "report.json")
    assert ran.code == 0, ran.err
    out = tmp_path / "data" / "tiny"
    assert (out / "data" / "train.jsonl").read_bytes() == TRAIN
    receipt = json.loads((out / RECEIPT).read_text())
    assert receipt["revision"] == COMMIT and receipt["complete"] and receipt["licence"] == "mit"
    assert receipt["files"]["data/train.jsonl"] == {
        "size": len(TRAIN),
        "sha256": sha256(TRAIN),
        "version": sha256(TRAIN),
    }
    assert not (out / "tiny.py").exists() and "1 program code" in ran.err and "licence: mit" in ran.err
    assert {path.name for path in out.iterdir()} == {RECEIPT, "README.md", "data"}  # no half files, no caches
    assert "sprout data inspect data/tiny/data/train.jsonl" in ran.out
    assert json.loads(Path("report.json").read_text())["left_out"] == {"program code, which is never run": 1}


def test_a_second_run_fetches_nothing_and_says_so(tiny: FakeHub, sprout: SPROUT) -> None:
    sprout("data", "download", "hf://datasets/acme/tiny")
    tiny.requests.clear()
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 0 and "nothing to fetch" in ran.out
    assert not [path for _, path, _ in tiny.requests if "/resolve/" in path]


def test_a_cut_connection_is_gone_on_with_from_where_it_was_cut(tiny: FakeHub, sprout: SPROUT) -> None:
    tiny.cuts["data/train.jsonl"] = [300_000]
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 0, ran.err
    assert Path("data/tiny/data/train.jsonl").read_bytes() == TRAIN
    first, second = tiny.gets("train.jsonl")
    assert first is None and second is not None and 0 < int(second[6:].rstrip("-")) <= 300_000


def test_half_a_file_of_a_killed_run_is_completed(
    tiny: FakeHub, sprout: SPROUT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself gives up: the next run of the command asks for the rest only."""
    from huggingface_hub import file_download

    original = file_download.http_get

    def once(*args: Any, **kwargs: Any) -> None:
        original(*args, **{**kwargs, "_nb_retries": 0})

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", once)
        tiny.cuts["data/train.jsonl"] = [200_000, 0]  # the library tries again once after some data, then gives up
        ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 1 and "connection was lost" in ran.err
    assert not json.loads(Path("data/tiny", RECEIPT).read_text())["complete"]
    assert not Path("data/tiny/data/train.jsonl").exists()
    tiny.requests.clear()
    assert sprout("data", "download", "hf://datasets/acme/tiny").code == 0
    (wanted,) = tiny.gets("train.jsonl")
    assert wanted is not None and 0 < int(wanted[6:].rstrip("-")) <= 200_000
    assert Path("data/tiny/data/train.jsonl").read_bytes() == TRAIN


def test_a_damaged_file_is_named_and_fetched_again(tiny: FakeHub, sprout: SPROUT) -> None:
    sprout("data", "download", "hf://datasets/acme/tiny")
    path = Path("data/tiny/data/train.jsonl")
    path.write_bytes(b"?" + TRAIN[1:])
    checked = sprout("data", "download", "hf://datasets/acme/tiny", "--check")
    assert checked.code == 2 and "data/train.jsonl" in checked.err
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 0 and "data/train.jsonl: has sha256" in ran.err and "1 fetched, 2 were there" in ran.out
    assert path.read_bytes() == TRAIN
    assert sprout("data", "download", "hf://datasets/acme/tiny", "--check").code == 0


def test_wrong_bytes_are_never_put_in_place(tiny: FakeHub, sprout: SPROUT) -> None:
    tiny.wrong["data/train.jsonl"] = 1
    assert sprout("data", "download", "hf://datasets/acme/tiny").code == 0  # the second attempt is right
    assert Path("data/tiny/data/train.jsonl").read_bytes() == TRAIN
    tiny.wrong["data/train.jsonl"] = 9
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--out", "other")
    assert ran.code == 1 and "train.jsonl: what came twice has sha256" in ran.err
    assert not Path("other/data/train.jsonl").exists()


def test_an_edited_file_that_no_receipt_knows_is_not_overwritten(tiny: FakeHub, sprout: SPROUT) -> None:
    Path("mine").mkdir()
    Path("mine/README.md").write_text("my own notes")
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--out", "mine")
    assert ran.code == 1 and "mine/README.md: is already there" in ran.err
    assert Path("mine/README.md").read_text() == "my own notes" and len(list(Path("mine").iterdir())) == 1


def test_another_source_does_not_mix_into_a_folder(tiny: FakeHub, sprout: SPROUT) -> None:
    tiny.repositories["datasets/acme/other"] = {"a.txt": b"a"}
    sprout("data", "download", "hf://datasets/acme/tiny", "--out", "x")
    ran = sprout("data", "download", "hf://datasets/acme/other", "--out", "x")
    assert ran.code == 1 and "holds files of hf://datasets/acme/tiny" in ran.err


def test_two_commands_do_not_write_into_one_folder(tiny: FakeHub, sprout: SPROUT) -> None:
    import fcntl
    import os

    parts = Path("data/tiny/.download")
    parts.mkdir(parents=True)
    handle = os.open(parts, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 1 and "another download is writing here" in ran.err
    os.close(handle)
    assert sprout("data", "download", "hf://datasets/acme/tiny").code == 0


def test_progress_says_how_much_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sproutlm.hub.download import _Progress
    from sproutlm.hub.listing import RemoteFile

    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    (tmp_path / "half.part").write_bytes(b"x" * 1000)
    said: list[str] = []
    progress = _Progress(5000, 3, tmp_path, said.append)
    clock[0] += 2
    progress.finished(RemoteFile("a", 1500))
    assert not said
    clock[0] += 8
    (tmp_path / "half.part").write_bytes(b"x" * 1500)
    progress.tick()
    # 2,000 bytes in ten seconds, 1,000 were there: 200 B/s, 2,000 left
    assert said == ["3.0 kB of 5.0 kB, file 2 of 3, 200 B/s, 10 s left"]


def test_a_dry_run_lists_and_writes_nothing(tiny: FakeHub, sprout: SPROUT, tmp_path: Path) -> None:
    ran = sprout("data", "download", "hf://datasets/acme/tiny/data/*.jsonl", "--dry-run")
    assert ran.code == 0 and "data/train.jsonl" in ran.out and "licence: mit" in ran.err
    assert not (tmp_path / "data").exists() and not tiny.gets("train.jsonl")


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(
    tiny: FakeHub, sprout: SPROUT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 1 and "kB are needed and 100 kB are free" in ran.err and "--sample" in ran.err
    assert not tiny.gets("train.jsonl")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("hf://datasets/acme/tinny", "not found at http"),
        ("hf://datasets/acme/TinyStories-x", "near in the catalogue: tinystories"),
        ("hf://datasets/acme/tiny@v9", "there is no revision 'v9'"),
        ("hf://datasets/acme/secret", "accept the terms at"),
        ("hf://datasets/acme/tiny/*.parquet", "none of 3 files matches *.parquet; there are data/t"),
    ],
)
def test_what_a_hub_refuses_is_one_sentence_with_its_cure(
    tiny: FakeHub, sprout: SPROUT, address: str, sentence: str, tmp_path: Path
) -> None:
    tiny.gated.add("datasets/acme/secret")
    ran = sprout("data", "download", address)
    assert ran.code == 1 and sentence in ran.err and len(ran.err.strip().splitlines()) == 1, ran.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("status", "sentence"), [(401, "HF_TOKEN"), (429, "asked too often"), (418, "answers 418")])
def test_a_status_of_the_server_is_a_sentence(tiny: FakeHub, sprout: SPROUT, status: int, sentence: str) -> None:
    tiny.status = status
    began = time.monotonic()
    ran = sprout("data", "download", "hf://datasets/acme/tiny")
    assert ran.code == 1 and sentence in ran.err, ran.err
    assert time.monotonic() - began < 5


def test_no_network_is_said_within_seconds(sprout: SPROUT, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    ran = sprout("data", "download", "tinystories")
    assert ran.code == 1 and "cannot reach http://127.0.0.1:9" in ran.err and "--hub DIR" in ran.err
    assert time.monotonic() - began < 7
