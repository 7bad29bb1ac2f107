"""What may differ when a run goes on, what is refused, and what happens when its disk or its checkpoints fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sproutlm.pipeline.continuation import check_continuation, run_lock
from sproutlm.train.checkpoint import Checkpointer, verify
from sproutlm.train.metrics import read_metrics

Train = Callable[..., Any]


def checkpoints(folder: Path) -> list[int]:
    return Checkpointer(folder / "run" / "checkpoints").steps()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def damage(folder: Path, step: int) -> None:
    file = folder / "run" / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


# --- settings -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_started_again_trains_nothing(finished: Path, train: Train) -> None:
    before = contents(finished / "run" / "checkpoints"), (finished / "run" / "metrics.jsonl").read_bytes()
    ran = train("--json", "figures.json")
    assert ran.code == 0 and "continuing from step 4 of 4" in ran.out
    figures = json.loads((finished / "figures.json").read_text())
    assert (figures["steps"], figures["resumed_from"]) == (4, 4) and figures["loss"] is not None
    assert before == (contents(finished / "run" / "checkpoints"), (finished / "run" / "metrics.jsonl").read_bytes())


def test_every_changed_setting_is_refused_by_name(finished: Path, train: Train) -> None:
    before = contents(finished / "run" / "checkpoints")
    ran = train("optimizer.lr=0.5", "model.dropout=0.1", "train.steps=9")
    assert ran.code == 1
    for words in ("optimizer.lr: was 0.01, now 0.5", "model.dropout: was 0.0, now 0.1", "train.steps: was 4, now 9"):
        assert words in ran.err
    assert "--change key=value" in ran.err and "run=DIR" in ran.err
    assert contents(finished / "run" / "checkpoints") == before


def test_more_steps_asked_for_by_name_are_trained_and_recorded(finished: Path, train: Train) -> None:
    ran = train("--change", "train.steps=6")
    assert ran.code == 0, ran.err
    assert "change at step 4: train.steps 4 -> 6" in ran.out and checkpoints(finished) == [4, 6]
    expected = {"step": 4, "key": "train.steps", "old": 4, "new": 6}
    record = finished / "run" / "changes.jsonl"
    assert [json.loads(line) for line in record.read_text().splitlines()] == [expected]
    assert train("--change", "train.steps=6").code == 0  # the same command again changes nothing more
    assert len(record.read_text().splitlines()) == 1
    stored = json.loads((finished / "run" / "checkpoints" / "step-00000006" / "trainer.json").read_text())
    assert stored["identity"]["recipe"]["train"]["steps"] == 6


def test_a_change_is_recorded_once_though_the_run_was_killed_before_its_next_checkpoint(
    finished: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sproutlm.train.trainer.Trainer.fit", killed)
        assert train("--change", "train.steps=6").code == 130
    assert train("--change", "train.steps=6").code == 0
    assert len((finished / "run" / "changes.jsonl").read_text().splitlines()) == 1


def test_only_what_was_asked_for_may_change(finished: Path, train: Train) -> None:
    ran = train("--change", "train.steps=6", "optimizer.lr=0.5")
    assert ran.code == 1 and "optimizer.lr: was 0.01, now 0.5" in ran.err and "train.steps" not in ran.err
    assert not (finished / "run" / "changes.jsonl").exists()
    assert train("--change", "train.steps=6", "--change", "optimizer.lr=0.5").code == 0
    rates = [r["lr"] for r in read_metrics(finished / "run" / "metrics.jsonl") if "lr" in r]
    assert rates[-1] == pytest.approx(0.5 * 0.05)


def test_an_end_that_was_passed_already_is_refused(finished: Path, train: Train) -> None:
    ran = train("--change", "train.steps=3")
    assert ran.code == 1 and "it is at step 4 already, so train.steps=3 cannot be its end" in ran.err


def test_a_change_that_the_stored_tensors_cannot_follow_is_a_sentence(finished: Path, train: Train) -> None:
    ran = train("--change", "optimizer.name=adamw", "--change", "train.steps=6")
    assert ran.code == 1 and "step-00000004 does not fit" in ran.err and "AdamW" in ran.err and "run=DIR" in ran.err
    ran = train("--change", "model.ffn_dim=64", "--change", "train.steps=6")
    assert ran.code == 1 and "gate_proj.weight has shape (32, 16); the model needs (64, 16)" in ran.err


def test_a_run_may_be_moved_and_made_faster(finished: Path, sprout: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files lie and how many processes read them is no setting of the run."""
    moved = finished.parent / "elsewhere"
    finished.rename(moved)
    monkeypatch.chdir(moved)
    (moved / "text.jsonl").rename(moved / "same.jsonl")
    (moved / "run").rename(moved / "old-run")
    ran = sprout(
        "train",
        "recipe.yaml",
        "run=old-run",
        "data.train=same.jsonl",
        "data.workers=2",
        "data.cache=shards",
        "--change",
        "train.steps=5",
    )
    assert ran.code == 0, ran.err
    assert "continuing from step 4 of 5" in ran.out


def test_checkpointing_may_change_and_the_losss_chunk_when_asked_for(finished: Path, train: Train) -> None:
    """The one changes no number; the other the order of sums, and so the last bits."""
    ran = train("train.checkpointing=blocks", "train.loss_chunk=8", "--change", "train.steps=5")
    assert ran.code == 1 and "train.loss_chunk: was 0, now 8" in ran.err and "train.checkpointing" not in ran.err
    ran = train("train.checkpointing=blocks", "--change", "train.loss_chunk=8", "--change", "train.steps=5")
    assert ran.code == 0 and "continuing from step 4 of 5" in ran.out, ran.err


def test_a_run_may_get_another_tracker_while_it_goes_on(finished: Path, train: Train) -> None:
    """Who looks on changes nothing: no --change is asked for, and the run's earlier checkpoints still fit."""
    pytest.importorskip("tensorboard", reason="needs sproutlm[track]")
    ran = train("train.trackers=[tensorboard]", "train.tracker_name=mine", "--change", "train.steps=5")
    assert ran.code == 0, ran.err
    assert "continuing from step 4 of 5" in ran.out and list((finished / "run" / "tensorboard").iterdir())


def test_a_checkpoint_of_an_earlier_version_knows_no_newer_settings(finished: Path) -> None:
    """A field that this version added has its default there; another value is still a change."""
    identity = json.loads((finished / "run/checkpoints/step-00000004/trainer.json").read_text())["identity"]
    old = json.loads(json.dumps(identity))
    del old["recipe"]["train"]["early_stop"], old["validation"]
    assert check_continuation(old, identity, set(), Path("run")) == []
    identity["recipe"]["train"]["early_stop"] = 3
    assert check_continuation(old, identity, {"train.early_stop"}, Path("run")) == [("train.early_stop", 0, 3)]


def test_the_compute_type_of_a_run_is_chosen_once(
    finished: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` measures the machine; a machine that is busy the second time must not change the run."""
    import torch

    shutil.rmtree(finished / "run" / "checkpoints")
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("sproutlm.pipeline.train.choose_compute", lambda device, d=dtype: (d, "measured"))
        assert train("train.compute=auto", "--json", "figures.json").code == 0
        assert json.loads((finished / "figures.json").read_text())["compute"] == "bf16"


def test_a_run_keeps_the_split_it_began_with_on_another_number_of_cores(
    finished: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of two rows, or four of one, sum in another order: the run must not notice the machine."""
    import torch

    checkpoints_folder = finished / "run" / "checkpoints"
    shutil.rmtree(checkpoints_folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert train().code == 0
    last = checkpoints_folder / "step-00000004"
    before = contents(last)
    settings = json.loads(before["trainer.json"])["identity"]["recipe"]["train"]
    assert (settings["streams"], settings["micro_batch"]) == (2, 2)
    for cores in (4, 1):
        shutil.rmtree(last)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=cores: n)
        ran = train()
        assert ran.code == 0 and "continuing from step 2 of 4" in ran.out, ran.err
        after = contents(last)
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert after[name] == before[name], (cores, name)
        settings = json.loads(after["trainer.json"])["identity"]["recipe"]["train"]
        assert (settings["streams"], settings["micro_batch"]) == (2, 2)
    shutil.rmtree(last)
    assert train("train.streams=1").code == 0  # how many are computed at once is no setting of the run; the split is
    assert json.loads((last / "trainer.json").read_text())["identity"]["recipe"]["train"]["micro_batch"] == 2


# --- content ------------------------------------------------------------------------------------------------------------


def test_one_changed_byte_of_the_data_is_refused(finished: Path, train: Train) -> None:
    data = finished / "text.jsonl"
    original = data.read_bytes()
    data.write_bytes(original.replace(b"tree", b"trey", 1))
    ran = train("--change", "train.steps=6")
    assert ran.code == 1 and "changed since: the training data" in ran.err and "the tokenizer" not in ran.err
    assert checkpoints(finished) == [2, 4]
    data.write_bytes(original)
    assert train("--change", "train.steps=6").code == 0


@pytest.mark.parametrize("part", ["ids", "template"])
def test_another_tokenizer_is_refused(finished: Path, train: Train, part: str) -> None:
    """The data are encoded anew and so differ too: only the cause is named."""
    name = "tokenizer.json" if part == "ids" else "tokenizer_config.json"
    file = finished / "run" / "tokenizer" / name
    text = file.read_text(encoding="utf-8")
    if part == "ids":
        values = json.loads(text)
        values["model"]["vocab"] = swapped(values["model"]["vocab"], 100, 101)
        changed = json.dumps(values, ensure_ascii=False)
    else:
        changed = text.replace("assistant", "asistant")
    assert changed != text
    file.write_text(changed, encoding="utf-8")
    ran = train("--change", "train.steps=6")
    expected = "the tokenizer (other ids for the same text)" if part == "ids" else "the tokenizer's chat template"
    assert ran.code == 1 and f"changed since: {expected}. Put back" in ran.err, ran.err
    assert checkpoints(finished) == [2, 4]


def swapped(vocab: dict[str, int], a: int, b: int) -> dict[str, int]:
    return {token: {a: b, b: a}.get(number, number) for token, number in vocab.items()}


def test_other_validation_data_is_refused(finished: Path, train: Train) -> None:
    """The best checkpoint is the best on these rows: figures on others cannot be compared."""
    shutil.rmtree(finished / "run" / "checkpoints")
    lines = (finished / "text.jsonl").read_text().splitlines(keepends=True)
    (finished / "held-out.jsonl").write_text("".join(lines[:5]))
    assert train("data.validation=held-out.jsonl").code == 0
    (finished / "held-out.jsonl").write_text("".join(lines[5:10]))
    ran = train("data.validation=held-out.jsonl")
    assert ran.code == 1 and "changed since: the validation data" in ran.err


# --- damage -------------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_said_once_and_the_one_before_gives_the_same_end(finished: Path, train: Train) -> None:
    """Found by its checksum; trained again from step 2, the bytes of step 4 are the same as before."""
    before = contents(finished / "run" / "checkpoints" / "step-00000004")
    damage(finished, 4)
    ran = train()
    assert ran.code == 0, ran.err
    assert ran.out.count("checkpoint of step 4 is damaged") == 1 and "does not match its checksum" in ran.out
    assert "continuing from step 2 of 4" in ran.out
    after = contents(finished / "run" / "checkpoints" / "step-00000004")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert after[name] == before[name]
    assert [r["step"] for r in read_metrics(finished / "run" / "metrics.jsonl") if "loss" in r] == [1, 2, 3, 4]


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over_by_itself(finished: Path, train: Train) -> None:
    damage(finished, 2)
    damage(finished, 4)
    before = contents(finished / "run" / "checkpoints")
    ran = train()
    assert ran.code == 1 and "none of the 2 checkpoints is undamaged" in ran.err and "Traceback" not in ran.err
    assert contents(finished / "run" / "checkpoints") == before


# --- folders and disks --------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(finished: Path, train: Train) -> None:
    with run_lock(finished / "run"):
        ran = train()
    assert ran.code == 1 and "another process trains in this folder" in ran.err
    assert train().code == 0


def test_locks_of_a_pipeline_and_of_its_stage_nest(tmp_path: Path) -> None:
    with run_lock(tmp_path / "pipeline"), run_lock(tmp_path / "pipeline" / "stage"):
        pass


@pytest.mark.parametrize("mode", ["folder is closed", "parent is closed"])
def test_a_run_folder_that_cannot_be_written_is_said_before_anything_is_built(
    open_folder: Path, finished: Path, sprout: Callable, ordinary_user: Callable, mode: str
) -> None:
    run = open_folder / "run"
    if mode == "folder is closed":
        run.mkdir(mode=0o755)
    else:
        open_folder.chmod(0o755)
    shutil.copy(finished / "text.jsonl", open_folder)
    shutil.copy(finished / "recipe.yaml", open_folder)
    before = contents(open_folder)
    os.chdir(open_folder)
    with ordinary_user():
        if os.access(run if run.exists() else open_folder, os.W_OK, effective_ids=True):
            pytest.skip("this user may write there")
        ran = sprout("train", open_folder / "recipe.yaml", f"run={run}")
    assert ran.code == 1 and f"{run}: this run folder cannot be written (Permission denied)" in ran.err
    assert "run=DIR" in ran.err and "tokenizer" not in ran.out and contents(open_folder) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    os.chdir(tmp_path)
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def test_a_full_disk_while_saving_is_one_sentence_and_the_run_goes_on_once_there_is_room(
    finished: Path, small_disk: Path, sprout: Callable
) -> None:
    shutil.copytree(finished / "run", small_disk / "run")
    command = ("train", finished / "recipe.yaml", f"run={small_disk / 'run'}", "--change", "train.steps=8")
    state = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(state.f_bavail * state.f_frsize - 40_000))  # a checkpoint takes 120 kB
    ran = sprout(*command)
    assert ran.code == 1 and "Traceback" not in ran.err
    assert "the checkpoint of step 6 could not be written: the disk is full" in ran.err
    assert "the checkpoint of step 4 is intact. Make room and start the same command again" in ran.err
    saved = Checkpointer(small_disk / "run" / "checkpoints")
    assert saved.steps() == [2, 4] and verify(saved.folder / "step-00000004") is None
    (small_disk / "filler").unlink()
    ran = sprout(*command)
    assert ran.code == 0, ran.err
    assert "continuing from step 4 of 8" in ran.out and saved.steps() == [6, 8]
    assert [r["step"] for r in read_metrics(small_disk / "run" / "metrics.jsonl") if "loss" in r] == list(range(1, 9))
