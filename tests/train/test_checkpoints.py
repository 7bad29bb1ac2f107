"""Checkpoints on disk: whole or not there, found damaged by their checksums, and never the cause of losing another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sproutlm.atomic import write_atomic
from sproutlm.errors import CheckpointError
from sproutlm.train import checkpoint as checkpoint_module, tensor_file
from sproutlm.train.checkpoint import MARKER, Checkpointer, verify
from sproutlm.train.saver import BackgroundSaver
from sproutlm.train.tensor_file import write_tensors


def tensors(step: int) -> dict[str, Tensor]:
    return {"embed.weight": torch.full((16, 8), float(step)), "norm.weight": torch.arange(8.0) + step}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def checkpointer(tmp_path: Path, said: list[str]) -> Checkpointer:
    return Checkpointer(tmp_path / "checkpoints", keep_last=2, say=said.append)


def save(checkpointer: Checkpointer, step: int, keep: set[int] | None = None) -> Path:
    return checkpointer.save(
        step,
        tensors(step),
        {"norm.weight/step": torch.tensor([step])},
        {"state": {"step": step}},
        {"a.txt": "甲\n"},
        keep,
    )


def flip_bit(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


# --- what is written ----------------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_back_exactly(checkpointer: Checkpointer) -> None:
    path = save(checkpointer, 7)
    checkpoint = checkpointer.latest()
    assert checkpoint is not None and (checkpoint.step, checkpoint.path) == (7, path)
    assert checkpoint.state() == {"state": {"step": 7}}
    assert all(torch.equal(t, tensors(7)[n]) for n, t in checkpoint.model_tensors().items())
    assert torch.equal(checkpoint.optimizer_tensors()["norm.weight/step"], torch.tensor([7]))
    assert (path / "a.txt").read_bytes() == "甲\n".encode()
    assert (checkpointer.folder / "latest").read_text() == "step-00000007\n"


def test_the_marker_holds_every_files_checksum(checkpointer: Checkpointer) -> None:
    path = save(checkpointer, 1)
    table = json.loads((path / MARKER).read_text())["files"]
    assert table.keys() == {p.name for p in path.iterdir()} - {MARKER}
    assert verify(path) is None


def test_one_state_gives_one_sequence_of_bytes(checkpointer: Checkpointer, tmp_path: Path) -> None:
    """Two runs that arrive at the same weights can be compared file by file."""
    other = save(Checkpointer(tmp_path / "other"), 3)
    for file in save(checkpointer, 3).iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


KINDS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32,
    torch.float64, torch.int64,
]  # fmt: skip


def test_a_tensor_file_is_what_the_safetensors_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, of every type, of sizes that are no multiple of eight, of none, scalars, transposed ones, and names
    that JSON has to escape; in one piece or in many."""
    stored = {
        f'甲{size}"\\\n{kind}': torch.arange(3 * size).reshape(3, size).to(kind) for size in range(4) for kind in KINDS
    }
    stored |= {"scalar": torch.tensor(3.0), "n/turned": torch.arange(12.0).reshape(3, 4).T, "\x7fé": torch.zeros(1)}
    save_file({n: t.contiguous() for n, t in stored.items()}, tmp_path / "library", {"format": "pt"})
    expected = (tmp_path / "library").read_bytes()
    for part in (tensor_file.PART, 5):
        monkeypatch.setattr(tensor_file, "PART", part)
        entry = write_tensors(tmp_path / "ours", stored)
        assert (tmp_path / "ours").read_bytes() == expected
        assert entry == {"bytes": len(expected), "sha256": hashlib.sha256(expected).hexdigest()}
    read = load_file(tmp_path / "ours")
    assert all(torch.equal(tensor, read[name]) and tensor.dtype == read[name].dtype for name, tensor in stored.items())


def test_a_type_that_cannot_be_stored_is_named_and_leaves_nothing(checkpointer: Checkpointer) -> None:
    with pytest.raises(TypeError, match=r"types: norm \(torch.complex64\)"):
        checkpointer.save(1, {"norm": torch.zeros(2, dtype=torch.complex64)}, {}, {}, {})
    assert list(checkpointer.folder.iterdir()) == []


def test_tensors_may_lie_in_several_files(checkpointer: Checkpointer) -> None:
    """The table alone says which files there are: a run on several devices writes one each."""

    class Parted(Checkpointer):
        def _write_tensors(self, folder, model, optimizer):  # type: ignore[no-untyped-def]
            return {f"model-{i}.safetensors": write_tensors(folder / f"model-{i}.safetensors", model) for i in (1, 2)}

    path = save(Parted(checkpointer.folder), 1)
    names = {p.name for p in path.iterdir()}
    assert {"model-1.safetensors", "model-2.safetensors"} < names and "model.safetensors" not in names
    assert verify(path) is None
    flip_bit(path / "model-2.safetensors")
    assert "model-2.safetensors does not match" in str(verify(path))


def test_an_undamaged_checkpoint_is_hashed_once(checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that continues asks three times for its newest checkpoint; a file that has changed since is looked at again."""
    path = save(checkpointer, 1)
    hashed: list[Path] = []

    def counted(file: Path, whole: Callable[[Path], str] = checkpoint_module.file_sha256) -> str:
        hashed.append(file)
        return whole(file)

    monkeypatch.setattr(checkpoint_module, "file_sha256", counted)
    assert checkpointer.latest() == checkpointer.latest()
    assert sorted(p.name for p in hashed) == sorted(p.name for p in path.iterdir() if p.name != MARKER)
    flip_bit(path / "model.safetensors")
    with pytest.raises(CheckpointError):
        checkpointer.latest()


def test_nothing_that_unpickles_is_written(checkpointer: Checkpointer) -> None:
    """Pitfall 42, for our own files."""
    assert {p.suffix for p in save(checkpointer, 1).iterdir()} <= {".safetensors", ".json", ".txt", ".yaml", ""}


# --- a kill at any moment -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the process where it stands: no handler of ours may run, as under kill -9."""


def test_a_kill_at_any_operation_of_a_save_leaves_a_loadable_checkpoint(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Pitfall 27: every write, sync, rename and removal of the second save is in turn the last thing that happens."""
    calls = {"left": 10**9}

    def dying(function: Callable) -> Callable:
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    whole_rmtree = shutil.rmtree

    def half_rmtree(path, **kwargs):  # type: ignore[no-untyped-def]
        if calls["left"] == 0:  # the kill comes after the first of its files is gone
            min(Path(path).iterdir()).unlink()
        return dying(whole_rmtree)(path, **kwargs)

    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    monkeypatch.setattr(shutil, "rmtree", half_rmtree)
    monkeypatch.setattr(checkpoint_module, "write_tensors", dying(checkpoint_module.write_tensors))
    monkeypatch.setattr(checkpoint_module, "_write_text", dying(checkpoint_module._write_text))
    monkeypatch.setattr(Path, "mkdir", dying(Path.mkdir))

    outcomes = []
    for moment in range(200):
        calls["left"] = 10**9
        whole_rmtree(checkpointer.folder, ignore_errors=True)
        for step in (1, 2):
            save(checkpointer, step)
        calls["left"] = moment
        try:
            save(checkpointer, 3)
        except Killed:
            pass
        else:
            break
        finally:
            calls["left"] = 10**9
        found = checkpointer.latest()
        assert found is not None and found.step in (2, 3), f"killed at operation {moment}"
        assert torch.equal(found.model_tensors()["embed.weight"], tensors(found.step)["embed.weight"])
        named = checkpointer.folder / (checkpointer.folder / "latest").read_text().strip()
        assert verify(named) is None, "`latest` never names a checkpoint that is not whole"
        assert said == [], "nothing half-written was even looked at"
        outcomes.append(found.step)
        save(checkpointer, 3)  # the run goes on
        save(checkpointer, 4)
        assert checkpointer.steps() == [3, 4]
        assert sorted(p.name for p in checkpointer.folder.iterdir()) == ["latest", "step-00000003", "step-00000004"]
    assert len(outcomes) > 15 and {2, 3} == set(outcomes), "kills fell before and after the rename"


# --- damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "a.txt", MARKER])
@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "removed"])
def test_damage_is_found_and_the_checkpoint_before_is_used_and_said(
    checkpointer: Checkpointer, said: list[str], name: str, damage: str
) -> None:
    for step in (1, 2):
        save(checkpointer, step)
    file = checkpointer.folder / "step-00000002" / name
    if damage == "flipped bit":
        flip_bit(file)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    found = checkpointer.latest()
    assert found is not None and found.step == 1
    checkpointer.latest()
    (sentence,) = said  # once, however often it is looked at
    assert "step 2 is damaged" in sentence and name in sentence and "the one before" in sentence


@pytest.mark.parametrize("place", [k / 40 for k in range(40)])
def test_a_flipped_bit_anywhere_in_the_marker_is_found(checkpointer: Checkpointer, place: float) -> None:
    path = save(checkpointer, 1)
    before = json.loads((path / MARKER).read_text())
    flip_bit(path / MARKER, place)
    try:
        harmless = json.loads((path / MARKER).read_text()).get("files") == before["files"]
    except ValueError:
        harmless = False
    assert harmless or verify(path) is not None


def test_when_all_are_damaged_it_is_said_and_nothing_is_started_over(checkpointer: Checkpointer) -> None:
    for step in (1, 2):
        flip_bit(save(checkpointer, step) / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="none of the 2 checkpoints is undamaged; remove the folder to start over"
    ):
        checkpointer.latest()


def test_no_checkpoint_is_no_error(checkpointer: Checkpointer) -> None:
    assert checkpointer.latest() is None and checkpointer.steps() == []


def test_a_damaged_checkpoint_is_written_anew_when_the_run_comes_to_it_again(checkpointer: Checkpointer) -> None:
    for step in (1, 2):
        save(checkpointer, step)
    flip_bit(checkpointer.folder / "step-00000002" / "model.safetensors")
    save(checkpointer, 2)
    found = checkpointer.latest()
    assert found is not None and found.step == 2 and verify(found.path) is None


def test_an_undamaged_checkpoint_of_the_same_step_is_left_as_it_is(checkpointer: Checkpointer) -> None:
    path = save(checkpointer, 1)
    before = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    assert save(checkpointer, 1) == path
    assert {p.name: p.stat().st_mtime_ns for p in path.iterdir()} == before


# --- what is kept -------------------------------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept(checkpointer: Checkpointer) -> None:
    for step in range(1, 6):
        save(checkpointer, step, keep={2})
    assert checkpointer.steps() == [2, 4, 5]


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """A run that went back to step 1 because 2 and 3 are damaged must not lose what it saves on its way."""
    checkpointer = Checkpointer(tmp_path / "c", keep_last=1, say=lambda sentence: None)
    save(checkpointer, 10)
    for step in (20, 30):
        save(Checkpointer(tmp_path / "c", keep_last=9), step)
        flip_bit(tmp_path / "c" / f"step-{step:08d}" / "model.safetensors")
    save(checkpointer, 15)
    found = checkpointer.latest()
    assert found is not None and found.step == 15


# --- disks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=20)


def test_a_full_disk_is_said_and_the_checkpoint_before_is_intact(small_disk: Path) -> None:
    checkpointer = Checkpointer(small_disk / "checkpoints")
    save(checkpointer, 1)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - 8192))
    large = {"embed.weight": torch.zeros(200, 40)}  # 32 kB where 8 are free
    with pytest.raises(
        CheckpointError, match="step 2 could not be written: the disk is full; .* step 1 is intact"
    ) as e:
        checkpointer.save(2, large, {"x": torch.zeros(1)}, {}, {})
    assert e.value.exit_code == 1 and "Make room and start the same command again" in str(e.value)
    assert checkpointer.steps() == [1] and not list(checkpointer.folder.glob(".step-*"))
    filler.unlink()
    checkpointer.save(2, large, {"x": torch.zeros(1)}, {}, {})
    found = checkpointer.latest()
    assert found is not None and found.step == 2


def test_a_disk_that_fills_while_the_run_goes_on_loses_nothing(small_disk: Path) -> None:
    """In the background the same sentence is raised when the loop asks next, and the loop may save again."""
    checkpointer = Checkpointer(small_disk / "checkpoints")
    saver = BackgroundSaver(checkpointer)
    saver.save(1, tensors(1), {"x": torch.zeros(1)}, {}, {})
    saver.finish()
    large = {"embed.weight": torch.zeros(400, 200)}  # 320 kB where 256 are
    saver.save(2, large, {"x": torch.zeros(1)}, {}, {})
    with pytest.raises(CheckpointError, match="step 2 could not be written: the disk is full; .* step 1 is intact"):
        saver.finish()
    assert checkpointer.steps() == [1] and not list(checkpointer.folder.glob(".step-*"))
    saver.save(3, tensors(3), {"x": torch.zeros(1)}, {}, {})
    saver.finish()
    found = checkpointer.latest()
    assert found is not None and found.step == 3


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    checkpointer: Checkpointer, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    for step in (1, 2, 3):
        if step == 3:
            monkeypatch.setattr(shutil, "rmtree", busy)
        save(checkpointer, step)
    found = checkpointer.latest()
    assert found is not None and found.step == 3
    assert len(said) == 1 and "an old checkpoint could not be removed" in said[0] and "busy" in said[0]


def test_a_full_disk_at_the_small_files_is_said_too(small_disk: Path) -> None:
    checkpointer = Checkpointer(small_disk / "checkpoints")
    with pytest.raises(CheckpointError, match="the disk is full; no checkpoint was saved before"):
        checkpointer.save(1, tensors(1), {"x": torch.zeros(1)}, {}, {"big.json": "x" * 300_000})
    assert checkpointer.latest() is None


def test_a_folder_that_cannot_be_written_is_a_sentence(open_folder: Path, ordinary_user) -> None:
    (open_folder / "checkpoints").mkdir(mode=0o755)
    with ordinary_user():
        if os.access(open_folder / "checkpoints", os.W_OK, effective_ids=True):
            pytest.skip("this user may write there")
        with pytest.raises(CheckpointError, match="step 1 could not be written: .*Permission denied"):
            save(Checkpointer(open_folder / "checkpoints"), 1)


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "one")
    write_atomic(tmp_path / "x", "二\n")
    assert (tmp_path / "x").read_bytes() == "二\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
