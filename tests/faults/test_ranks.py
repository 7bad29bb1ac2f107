"""Runs of several processes that lose, freeze or stop a rank, and go on, on as many ranks or others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import ROWS, SAVE_EVERY, STEPS, RanksDrill, assert_equal, at_step, living, nothing_left, write_project

from sproutlm.verify.processes import Launcher, log_of

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def prepared(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RanksDrill]:
    """The project whose run one process made from its beginning to its end."""
    drill = RanksDrill(write_project(tmp_path_factory.mktemp("alone")), launch)
    drill.ends(1)
    yield drill


def project(prepared: RanksDrill, folder: Path) -> RanksDrill:
    """A project of its own whose data are prepared and that has not trained yet."""
    write_project(folder)
    for name in ("tokenizer", "data"):
        shutil.copytree(prepared.run / name, folder / "run" / name)
    return RanksDrill(folder, prepared.launch)


@pytest.fixture
def drill(prepared: RanksDrill, tmp_path: Path) -> Iterator[RanksDrill]:
    with nothing_left(tmp_path):
        yield project(prepared, tmp_path / "project")


@pytest.fixture(scope="module")
def four(prepared: RanksDrill, tmp_path_factory: pytest.TempPathFactory) -> RanksDrill:
    """The run that four processes made undisturbed."""
    drill = project(prepared, tmp_path_factory.mktemp("four") / "project")
    drill.ends(4)
    return drill


# --- a rank goes away ---------------------------------------------------------------------------------------------------


def strike(drill: RanksDrill, rank: int, step: int, act: str, code: int, restarts: int = 0) -> str:
    """A run of four whose ``rank`` does ``act`` in the middle of ``step``, counted from where this start begins."""
    drill.plan(rank, at_step(step, 4) + 1, act)
    printed = drill.ends(4, code=code, restarts=restarts)
    assert (drill.folder / "acted.json").exists()
    assert not living(drill.folder)
    return printed


def test_four_ranks_through_every_fault_end_with_the_bits_of_an_undisturbed_run(
    drill: RanksDrill, four: RanksDrill
) -> None:
    """A loss that is not finite, a stop, a kill, and a kill that torchrun recovers from, each followed by the same command."""
    printed = strike(drill, 1, 2, "nan", code=1)
    rows = [row for number, row in numbered(drill.folder / "rows-1") if number in (3, 4)]
    assert (
        printed.count(
            f"step 2: the loss or gradient is not finite (loss nan, gradient norm nan); rank 1 rows {rows[0]}, {rows[1]}."
        )
        == 4
    )
    assert "The weights are those of step 1." in printed and drill.saved() == []

    printed = stopped(drill, 1, 2)
    assert drill.saved() == [2]
    assert "SIGTERM: saved at step 2 of 8; the same command continues it" in printed

    printed = strike(drill, 2, 3, "SIGKILL", code=4)  # in step 5: saved at 3
    assert "continuing from step 2 of 8" in printed
    killed = rf"rank 2 \(process {drill.pid(2)} on \S+\) was killed, frozen or cut off in step 5"
    for rank in (0, 1, 3):
        assert re.search(rf"error: rank {rank} cannot go on after step 4 \(.*\): {killed}", printed), printed
    assert f"error: rank 2 (process {drill.pid(2)} on " in printed and "was ended by SIGKILL" in printed
    assert drill.saved() == [2, 3]

    printed = strike(drill, 3, 4, "SIGKILL", code=0, restarts=1)  # in step 7: saved at 6
    assert "continuing from step 3 of 8" in printed and "continuing from step 6 of 8" in printed
    assert "was killed, frozen or cut off in step 7" in printed
    assert_equal(drill.outcome(), four.outcome())


def numbered(path: Path) -> list[tuple[int, int]]:
    """(micro-batch since the start, row) of one rank."""
    return [(number, rows[0]) for number, rows in map(json.loads, path.read_text().splitlines())]


def stopped(drill: RanksDrill, rank: int, step: int, processes: int = 4) -> str:
    """SIGTERM, sent to `sprout launch` alone, while ``rank`` is in the middle of ``step`` and the others wait for it."""
    drill.plan(rank, at_step(step, processes) + 1, "wait")
    process = drill.start(processes)
    assert drill.acted(process)
    assert process.send(signal.SIGTERM)
    assert process.until(lambda: "SIGTERM received: saving after this step" in drill.printed())
    (drill.folder / "go").touch()
    printed = drill.ended(process, 130)
    assert not living(drill.folder)
    return printed


def test_a_frozen_rank_ends_the_run_after_the_timeout(drill: RanksDrill) -> None:
    drill.plan(1, at_step(2, 2), "SIGSTOP")
    process = drill.start(2, "parallel.timeout=6")
    assert drill.acted(process)
    frozen = drill.pid(1)
    sentence = rf"rank 0 cannot go on after step 1 \(.*\): rank 1 \(process {frozen} on \S+\) was killed, frozen or cut off in step 2"
    assert process.until(lambda: re.search(sentence, log_of(drill.folder)) is not None)
    assert frozen in living(drill.folder)
    os.kill(frozen, signal.SIGKILL)  # torchrun does so after 30 s, see below
    drill.ended(process, 4)
    assert not living(drill.folder)


@pytest.mark.slow
def test_torchrun_ends_a_frozen_rank_and_goes_on_by_itself(drill: RanksDrill) -> None:
    """Fresh interpreters, 30 s of torchrun's patience, and a restart."""
    drill.plan(1, at_step(5, 2), "SIGSTOP")
    process = drill.start(2, "parallel.timeout=6", restarts=1, fresh=True)
    assert drill.acted(process)
    frozen = drill.pid(1)
    printed = drill.ended(process, 0)
    assert f"rank 1 (process {frozen} on " in printed and "continuing from step 3 of 8" in printed
    assert drill.saved()[-1] == STEPS and frozen not in living(drill.folder)


@pytest.mark.slow
def test_the_command_as_a_person_types_it_recovers_stops_and_goes_on(drill: RanksDrill, four: RanksDrill) -> None:
    """The fault drill above with fresh interpreters in place of forked ones."""
    drill.plan(2, at_step(5, 4) + 1, "SIGKILL")
    process = drill.start(4, restarts=1, fresh=True)
    assert drill.acted(process)
    assert process.until(lambda: "continuing from step 3 of 8" in log_of(drill.folder))
    process.send(signal.SIGTERM)
    printed = drill.ended(process, 130)
    assert "was killed, frozen or cut off in step 5" in printed
    assert not living(drill.folder)
    drill.ended(drill.start(4, fresh=True), 0)
    assert_equal(drill.outcome(), four.outcome())


def test_a_second_launch_on_the_same_folder_is_refused(drill: RanksDrill) -> None:
    drill.plan(1, 2, "wait")
    process = drill.start(2)
    assert drill.acted(process)
    printed = drill.ends(2, code=1)
    assert "another process trains in this folder" in printed
    (drill.folder / "go").touch()
    drill.ended(process, 0)
    assert drill.saved()[-1] == STEPS


# --- one rank fails -----------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_for_one_rank_leaves_the_checkpoint_before(drill: RanksDrill) -> None:
    """A checkpoint in parts: none of it stays where one part could not be written."""
    drill.plan(1, at_step(5, 2), "full")  # the save after step 6
    printed = drill.ends(2, "parallel.shard=2", code=1)
    fault = (
        r"the checkpoint of step 6 could not be written: rank 1 on \S+: .*too large.*the checkpoint of step 3 is intact"
    )
    assert len(re.findall(fault, printed)) >= 1, printed
    assert drill.saved() == [3] and not list((drill.run / "checkpoints").glob(".step-*"))
    printed = drill.ends(2, "parallel.shard=2")
    assert "continuing from step 3 of 8" in printed and drill.saved()[-1] == STEPS


def may_hide_folders() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not may_hide_folders(), reason="needs the right to mount")
def test_a_run_folder_that_one_rank_cannot_see_is_refused(drill: RanksDrill) -> None:
    drill.plan(1, 0, "elsewhere")
    printed = drill.ends(2, code=1)
    assert re.search(r"rank 1 on \S+ cannot see this run folder; put it on storage that all hosts share", printed), (
        printed
    )
    assert drill.saved() == []


# --- another number of ranks --------------------------------------------------------------------------------------------


def cut(prepared: RanksDrill, folder: Path, processes: int, *arguments: str) -> RanksDrill:
    """A run that a kill in step 5 ended, with the checkpoint of step 3."""
    drill = project(prepared, folder)
    drill.plan(0, at_step(5, processes // (2 if "parallel.tp=2" in arguments else 1)), "SIGKILL")
    drill.ends(processes, *arguments, code=4 if processes > 1 else -signal.SIGKILL)
    assert drill.saved() == [SAVE_EVERY]
    return drill


def continues_as_one_process(
    prepared: RanksDrill, source: RanksDrill, folder: Path, processes: int, *arguments: str
) -> None:
    """The same command on other ranks: the rows of the steps that are left, and the losses of the run of one process."""
    shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns("rows-*", "log"))
    drill = RanksDrill(folder, prepared.launch)
    printed = drill.ends(processes, *arguments)
    assert f"continuing from step {SAVE_EVERY} of {STEPS}" in printed
    assert sorted({*drill.rows()}) == sorted(
        {row for _, row in numbered(prepared.folder / "rows-0")[SAVE_EVERY * ROWS :]}
    )
    expected = prepared.losses()
    for step, (got, alone) in enumerate(zip(drill.losses(), expected, strict=True), 1):
        assert abs(got / alone - 1) < 1e-6, f"step {step}: {got}, {alone} in one process"


def test_a_sharded_checkpoint_of_four_ranks_continues_on_any_number(prepared: RanksDrill, tmp_path: Path) -> None:
    with nothing_left(tmp_path):
        source = cut(prepared, tmp_path / "four", 4, "parallel.shard=4")
        continues_as_one_process(prepared, source, tmp_path / "two", 2, "parallel.shard=2")
        continues_as_one_process(prepared, source, tmp_path / "one", 1)
        continues_as_one_process(prepared, source, tmp_path / "tp", 2, "parallel.tp=2")


@pytest.mark.slow
def test_copies_of_the_weights_continue_on_any_number(prepared: RanksDrill, tmp_path: Path) -> None:
    with nothing_left(tmp_path):
        two = cut(prepared, tmp_path / "from-two", 2)
        continues_as_one_process(prepared, two, tmp_path / "two-one", 1)
        continues_as_one_process(prepared, two, tmp_path / "two-four", 4)
        one = cut(prepared, tmp_path / "from-one", 1)
        continues_as_one_process(prepared, one, tmp_path / "one-two", 2)
