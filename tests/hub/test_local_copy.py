"""A local copy of a hub, in its cache's layout or as plain folders: the same way in for people without a network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, git_sha1, sha256

from sproutlm.hub.checksums import RECEIPT

SPROUT = Callable[..., Any]
ROWS = b'{"text": "one"}\n{"text": "two"}\n' * 20
OTHER = "beef" + "0" * 36


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two revisions of one data set, and a model, as ``huggingface_hub`` lays them out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPROUT_HUB", raising=False)
    root = tmp_path / "hub"
    put(root / "datasets--acme--tiny", COMMIT, {"README.md": b"---\nlicense: mit\n---\n", "data/train.jsonl": ROWS})
    put(root / "datasets--acme--tiny", OTHER, {"data/train.jsonl": b'{"text": "old"}\n'}, ref="v1")
    weights = {
        "config.json": b"{}",
        "model.safetensors": b"w" * 300,
        "pytorch_model.bin": b"p",
        "modeling.py": b"x",
        "consolidated.safetensors": b"w",
    }
    put(root / "models--acme--Small", COMMIT, {**weights, "onnx/model.onnx": b"o", "flax_model.msgpack": b"f"})
    put(root / "models--acme--old", COMMIT, {"config.json": b"{}", "pytorch_model.bin": b"p"})
    return root


def put(repository: Path, commit: str, files: dict[str, bytes], ref: str = "main") -> None:
    for name, data in files.items():
        blob = repository / "blobs" / (sha256(data) if len(data) > 100 else git_sha1(data))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(commit)


def test_a_cache_is_read_by_its_refs_and_checked_by_its_blobs(cache: Path, sprout: SPROUT) -> None:
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "hub")
    assert ran.code == 0, ran.err
    assert Path("data/tiny/data/train.jsonl").read_bytes() == ROWS and "licence: mit" in ran.err
    assert json.loads(Path("data/tiny", RECEIPT).read_text())["revision"] == COMMIT
    assert "no checksum" not in ran.out
    assert "nothing to fetch" in sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "hub").out
    for revision in ("v1", OTHER, OTHER[:8]):
        ran = sprout("data", "download", f"hf://datasets/acme/tiny@{revision}", "--hub", "hub", "--out", "old")
        assert ran.code == 0 and Path("old/data/train.jsonl").read_bytes() == b'{"text": "old"}\n', ran.err
    ran = sprout("data", "download", "hf://datasets/acme/tiny@v2", "--hub", "hub", "--out", "none")
    assert ran.code == 1 and "no revision 'v2'; it has main, v1" in ran.err


def test_what_is_printed_afterwards_can_be_typed(cache: Path, sprout: SPROUT) -> None:
    import yaml

    from sproutlm.config.data import DataConfig

    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "hub")
    for verb in ("data validate", "data inspect"):
        (line,) = (line for line in ran.out.splitlines() if verb in line)
        done = sprout(*shlex.split(line[line.index(verb) :]))
        assert done.code == 0 and "40" in done.out, done.err
    recipe = yaml.safe_load(ran.out[ran.out.index("  data:") :])
    assert DataConfig(**recipe["data"]).train[0].path == "data/tiny/data/train.jsonl"


def test_a_damaged_local_copy_is_named(cache: Path, sprout: SPROUT) -> None:
    blob = cache / "datasets--acme--tiny" / "blobs" / sha256(ROWS)
    blob.write_bytes(b"!" + ROWS[1:])
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "hub")
    assert ran.code == 1 and "data/train.jsonl: what came twice has sha256" in ran.err
    blob.unlink()
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "hub")
    assert ran.code == 1 and "its file in blobs/ is missing" in ran.err


def test_sprout_hub_and_the_offline_variable_lead_to_the_copy(
    cache: Path, sprout: SPROUT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPROUT_HUB", str(cache))
    assert sprout("data", "download", "hf://datasets/acme/tiny", "--out", "a").code == 0
    monkeypatch.delenv("SPROUT_HUB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    assert sprout("data", "download", "acme/tiny", "--out", "b").code == 0
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "none"))
    ran = sprout("data", "download", "acme/tiny", "--out", "c")
    assert ran.code == 1 and "HF_HUB_OFFLINE is set" in ran.err


@pytest.mark.parametrize(
    "layout",
    ["acme/tiny", "datasets/acme/tiny", "datasets/acme--tiny/snapshots/master", "hub/datasets--acme--tiny/snapshots/x"],
)
def test_every_layout_that_a_mirror_has_is_found(
    layout: str, tmp_path: Path, sprout: SPROUT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mirror" / layout
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(ROWS)
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", "mirror")
    assert ran.code == 0 and Path("data/tiny/rows.jsonl").read_bytes() == ROWS, ran.err
    ran = sprout("data", "download", "hf://datasets/acme/tinny", "--hub", "mirror")
    assert ran.code == 1 and "not in the local copy mirror (it holds acme/tiny" in ran.err


def test_a_folder_is_an_address_too(cache: Path, sprout: SPROUT) -> None:
    for address in ("hub/datasets--acme--tiny", f"file://{cache}/datasets--acme--tiny"):
        ran = sprout("data", "download", address)
        assert ran.code == 0 and Path("data/tiny/data/train.jsonl").read_bytes() == ROWS, ran.err
    ran = sprout("data", "download", "./nothing")
    assert ran.code == 1 and "./nothing: no such folder" in ran.err


def test_a_model_comes_without_pickles_code_and_other_programs_weights(cache: Path, sprout: SPROUT) -> None:
    ran = sprout("download", "model", "hf://acme/Small", "--hub", "hub")
    assert ran.code == 0, ran.err
    assert {path.name for path in Path("models/small").iterdir()} == {RECEIPT, "config.json", "model.safetensors"}
    for count in ("1 pickle", "1 program code", "3 weights for other programs"):
        assert count in ran.err
    assert "sprout chat models/small" in ran.out and "init_from: models/small" in ran.out


@pytest.mark.parametrize("options", [[], ["--include", "*.bin"]])
def test_a_model_of_pickles_only_is_refused(cache: Path, sprout: SPROUT, options: list[str]) -> None:
    ran = sprout("download", "model", "hf://acme/old", "--hub", "hub", *options)
    assert ran.code == 1 and "can run code when read" in ran.err and "@refs/pr/1" in ran.err
    assert not Path("models").exists()


def test_limits_take_the_first_files_and_say_what_stays(tmp_path: Path, sprout: SPROUT, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "m" / "acme" / "big"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"part-{number}.jsonl").write_bytes(b"x" * 1000)
    (folder / "README.md").write_text("# big")

    def taken(*options: str) -> list[str]:
        ran = sprout("data", "download", "hf://datasets/acme/big", "--hub", "m", "--dry-run", *options)
        assert ran.code == 0, ran.err
        assert "README.md" in ran.out
        names = [line.split()[-1] for line in ran.out.splitlines() if "part-" in line]
        assert len(names) == 12 or f"{12 - len(names)} past --max-files or --sample" in ran.err
        return names

    assert taken("--max-files", "3") == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]  # and not part-10
    assert taken("--sample", "3.5kB") == [f"part-{number}.jsonl" for number in range(4)]
    assert taken("--sample", "1") == ["part-0.jsonl"]
    assert len(taken("--sample", "1GB")) == 12
    ran = sprout("data", "download", "hf://datasets/acme/big", "--hub", "m", "--sample", "lots")
    assert ran.code == 1 and "expected a size such as 100MB" in ran.err


def test_a_file_name_that_leads_out_of_the_folder_is_refused() -> None:
    from sproutlm.errors import SproutError
    from sproutlm.hub.address import parse_address
    from sproutlm.hub.listing import Listing, RemoteFile, select

    for name in ("../x.jsonl", "/etc/x", "a/../../x", "a\\..\\x", "C:/x"):
        listing = Listing(parse_address("hf://datasets/a/b", "data"), "here", None, (RemoteFile(name),))
        with pytest.raises(SproutError, match="leads out of the folder"):
            select(listing)


def test_a_folder_that_may_not_be_written_is_said(
    cache: Path, sprout: SPROUT, open_folder: Path, ordinary_user: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(cache, open_folder / "hub", symlinks=False)
    (open_folder / "locked").mkdir(mode=0o555)
    monkeypatch.chdir(open_folder)
    with ordinary_user():
        ran = sprout("data", "download", str(open_folder / "hub/datasets--acme--tiny"), "--out", "locked/x")
    assert ran.code == 1 and "no permission to write" in ran.err


def test_a_file_in_place_of_the_folder_is_refused(cache: Path, sprout: SPROUT, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(ROWS)
    ran = sprout("data", "download", "hf://datasets/acme/tiny", "--hub", str(cache), "--out", str(file))
    assert ran.code == 1 and "is no folder" in ran.err
    assert file.read_bytes() == ROWS
