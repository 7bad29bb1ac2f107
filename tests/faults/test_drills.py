"""Fault drills: a real process, one fault, and what a person sees. docs/when-it-breaks.md names the drill of each line.

Each drill asserts what is said, the exit code, what is lost (nothing past the last step saved), and that the same command,
once the fault is gone, ends as if nothing had happened: bit for bit.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from drills import SAVE_EVERY, STEPS, Drill, Mount, fill

from sproutlm.verify.processes import Process

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork, signals of POSIX systems")

STOPPED = "saved at step {} of {}; the same command continues it"


def continuing(step: int) -> str:
    return f"continuing from step {step} of {STEPS}"


# --- told to stop -------------------------------------------------------------------------------------------------------


def test_kill_9_loses_what_came_after_the_last_save(drill: Drill) -> None:
    process = drill.paused(step=5)
    assert process.send(signal.SIGKILL)
    drill.ended(process, -int(signal.SIGKILL))
    (drill.folder / "pause").unlink()
    assert drill.saved() == [3]
    drill.ends(0, continuing(3))
    drill.as_if_undisturbed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_a_signal_saves_the_step_under_way_and_ends_with_130(drill: Drill, number: signal.Signals) -> None:
    process = drill.paused(step=5)
    assert process.send(number)
    drill.go()
    said = drill.ended(process, 130, f"{number.name} received", f"{number.name}: {STOPPED.format(5, STEPS)}")
    assert said.count("received") == 1
    assert drill.saved() == [3, 5], "the step under way was finished and saved, and no other begun"
    drill.ends(0, continuing(5))
    drill.as_if_undisturbed()


def test_ctrl_c_twice_stops_at_once_and_saves_nothing_more(drill: Drill) -> None:
    process = drill.paused(step=5)
    assert process.send(signal.SIGINT)
    assert process.until(lambda: "SIGINT received" in (drill.folder / "log").read_text())
    assert process.send(signal.SIGINT)  # it still waits in the middle of step 5
    drill.ended(process, 130, "Ctrl-C again stops at once", "error: interrupted")
    drill.go()
    assert drill.saved() == [3]
    drill.ends(0, continuing(3))
    drill.as_if_undisturbed()


# --- checkpoints --------------------------------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 100)


def take_the_marker(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "model.safetensors does not match its checksum: damaged"),
        (truncate, "optimizer.safetensors has 100 bytes instead of"),
        (take_the_marker, "has no COMPLETE marker: the save was cut off"),
    ],
    ids=["flipped bit", "truncated", "no marker"],
)
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    drill: Drill, undisturbed: Path, damage: object, said: str
) -> None:
    shutil.copytree(undisturbed / "run", drill.run, dirs_exist_ok=True)
    shutil.rmtree(drill.run / "checkpoints" / f"step-{STEPS:08d}")
    shutil.rmtree(drill.run / "model")
    damage(drill.run / "checkpoints" / "step-00000009")  # type: ignore[operator]
    printed = drill.ends(0, "checkpoint of step 9 is damaged", said, "using the one before it", continuing(6))
    assert printed.count("is damaged") == 1
    assert drill.saved() == [3, 6, 9, 12], "the damaged one was written anew"
    drill.as_if_undisturbed()


def test_going_back_is_removing_the_newer_checkpoints(drill: Drill, undisturbed: Path) -> None:
    """The page says so; metrics past the older one are forgotten and written again."""
    shutil.copytree(undisturbed / "run", drill.run, dirs_exist_ok=True)
    for step in (6, 9, 12):
        shutil.rmtree(drill.run / "checkpoints" / f"step-{step:08d}")
    drill.ends(0, continuing(3))
    drill.as_if_undisturbed()


# --- disks and folders --------------------------------------------------------------------------------------------------


def onto(disk: Path, drill: Drill, mount: Mount, options: str) -> None:
    """Mount a file system at ``disk``, with what the folder held before."""
    kept = drill.folder / "kept"
    shutil.copytree(disk, kept)
    mount(disk, options)
    shutil.copytree(kept, disk, dirs_exist_ok=True)


def test_a_disk_that_fills_during_a_save_loses_that_save_alone(drill: Drill, mount: Mount) -> None:
    onto(drill.run, drill, mount, "size=2m")
    process = drill.paused(step=5)
    filler = fill(drill.run, leave=60_000)  # a checkpoint takes more
    drill.go()
    drill.ended(
        process,
        1,
        "the checkpoint of step 6 could not be written: the disk is full",
        "the checkpoint of step 3 is intact. Make room and start the same command again",
    )
    assert drill.saved() == [3] and not list((drill.run / "checkpoints").glob(".step-*"))
    drill.ends(1, "the disk is full")  # still no room: the same sentence, and nothing is lost
    assert drill.saved() == [3]
    filler.unlink()
    drill.ends(0, continuing(3))
    drill.as_if_undisturbed()


def test_a_checkpoint_folder_that_becomes_read_only_is_said_at_the_next_save(drill: Drill, mount: Mount) -> None:
    checkpoints = drill.run / "checkpoints"
    mount(checkpoints, "size=4m")
    process = drill.paused(step=5)
    mount(checkpoints, "remount,ro")
    drill.go()
    drill.ended(
        process, 1, "the checkpoint of step 6 could not be written", "Read-only", "the checkpoint of step 3 is intact"
    )
    assert drill.saved() == [3]
    mount(checkpoints, "remount,rw")
    drill.ends(0, continuing(3))
    drill.as_if_undisturbed()


def test_a_read_only_run_folder_is_said_before_the_first_step(drill: Drill, mount: Mount) -> None:
    shutil.rmtree(drill.run)
    mount(drill.run, "ro")
    printed = drill.ends(1, "this run folder cannot be written (Read-only file system); choose another with run=DIR")
    assert "step" not in printed and "tokenizer" not in printed and not list(drill.run.iterdir())


def test_a_file_where_the_run_folder_should_be_is_said_before_the_first_step(drill: Drill) -> None:
    shutil.rmtree(drill.run)
    drill.run.write_text("a file of somebody's")
    printed = drill.ends(1, "this run folder cannot be written", "choose another with run=DIR")
    assert "step" not in printed and drill.run.read_text() == "a file of somebody's"


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(drill: Drill) -> None:
    first = drill.paused(step=5)
    second = drill.start()
    drill.ended(second, 1, "another process trains in this folder; wait for it, or use another run=DIR")
    drill.go()
    drill.ended(first, 0)
    drill.as_if_undisturbed()


# --- what is read -------------------------------------------------------------------------------------------------------


def stopped_in_step_5(drill: Drill, process: Process) -> None:
    assert process.send(signal.SIGTERM)
    drill.go()
    drill.ended(process, 130, STOPPED.format(5, STEPS))


def test_a_data_file_that_goes_or_changes_stops_no_run_but_the_next_start(drill: Drill) -> None:
    """A run reads token shards of its own. The next start compares the file with them."""
    text = drill.folder / "text.jsonl"
    original = text.read_bytes()
    process = drill.paused(step=2)
    text.unlink()
    (drill.folder / "go").touch()
    drill.ended(process, 0)
    drill.as_if_undisturbed()
    (drill.folder / "pause").unlink()
    drill.ends(1, "text.jsonl")
    text.write_bytes(original.replace(b"tree", b"trey", 1))
    drill.ends(1, "changed since: the training data (another file, or other rows or bytes in it)", "Put back")
    assert drill.saved() == [3, 6, 9, 12]
    text.write_bytes(original)
    drill.ends(0, continuing(STEPS))
    drill.as_if_undisturbed()


def test_a_changed_data_file_put_back_continues_a_stopped_run(drill: Drill) -> None:
    text = drill.folder / "text.jsonl"
    original = text.read_bytes()
    stopped_in_step_5(drill, drill.paused(step=5))
    text.write_bytes(original.replace(b"tree", b"trey", 1))
    drill.ends(1, "changed since: the training data")
    assert drill.saved() == [3, 5]
    text.write_bytes(original)
    drill.ends(0, continuing(5))
    drill.as_if_undisturbed()


def test_a_changed_token_shard_is_found_and_made_again(drill: Drill) -> None:
    """One byte of what a run really reads: its checksum tells, and the source gives the same bytes again."""
    stopped_in_step_5(drill, drill.paused(step=5))
    (shard,) = (drill.run / "data" / "train").glob("*.ds")
    before = shard.read_bytes()
    shard.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    drill.ends(0, continuing(5))
    assert shard.read_bytes() == before
    drill.as_if_undisturbed()


@pytest.mark.parametrize(
    ("place", "sentences"),
    [
        (4, ("changed since: the tokenizer (other ids for the same text)", "Put back")),
        (-1, ("tokenizer.json: the tokenizers library cannot read this file", "out of vocabulary")),
    ],
    ids=["an id", "a letter"],
)
def test_one_changed_byte_of_the_tokenizer_is_refused_by_name(
    drill: Drill, place: int, sentences: tuple[str, ...]
) -> None:
    stopped_in_step_5(drill, drill.paused(step=5))
    file = drill.run / "tokenizer" / "tokenizer.json"
    original = file.read_bytes()
    at = original.index(b'":299') + place  # of the last token: a digit of its id, or its last letter
    file.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
    drill.ends(1, *sentences)
    assert drill.saved() == [3, 5]
    file.write_bytes(original)
    drill.ends(0, continuing(5))
    drill.as_if_undisturbed()


# --- time ---------------------------------------------------------------------------------------------------------------

JUMPING = """
import time
right, calls = time.time, []
def jumping():
    calls.append(1)
    return right() + (-1) ** len(calls) * 1e6 * len(calls)
time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
"""


def test_a_clock_that_jumps_changes_no_number(drill: Drill) -> None:
    """Days back and forth at each look at the clock; the run is also stopped and continued under it."""
    (drill.folder / "jumping.py").write_text(JUMPING)
    (drill.folder / "pause").write_text(str(4 * 3 + 2))
    process = drill.start(first="jumping")
    assert process.until((drill.folder / "paused").exists)
    stopped_in_step_5(drill, process)
    drill.ended(drill.start(first="jumping"), 0, continuing(5))
    drill.as_if_undisturbed()


def test_the_drills_interrupt_between_saves() -> None:
    """Where they stop is neither a step that is saved anyway nor one after which nothing is left to do."""
    assert 5 % SAVE_EVERY and SAVE_EVERY < 5 < STEPS
