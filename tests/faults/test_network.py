"""A run of two nodes whose link is cut and comes back: two network namespaces, a cable of two ends between them, torchrun in each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import STEPS, RanksDrill, nothing_left, write_project

from sproutlm.pipeline.launch import Job
from sproutlm.verify.processes import PATIENCE, Launcher, environment

ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)


class Cable:
    """Two namespaces, a process in each, and what lies between them."""

    def __init__(self, mark: str) -> None:
        self.spaces = [f"sprout-{mark}-{n}" for n in range(2)]
        self.ends = [f"sp{mark}-{n}" for n in range(2)]

    def lay(self) -> str:
        """Why it cannot be laid; empty where it lies."""
        for space in self.spaces:
            made = ip("netns", "add", space)
            if made.returncode:
                return made.stderr.strip()
        made = ip("link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1])
        if made.returncode:
            return made.stderr.strip()
        for space, end, address in zip(self.spaces, self.ends, ADDRESSES, strict=True):
            for words in (
                f"link set {end} netns {space}",
                f"-n {space} addr add {address}/24 dev {end}",
                f"-n {space} link set lo up",
                f"-n {space} link set {end} up",
            ):
                made = ip(*words.split())
                if made.returncode:
                    return made.stderr.strip()
        return ""

    def set(self, state: str) -> None:
        """``down`` or ``up``: the end of the second node."""
        assert ip("-n", self.spaces[1], "link", "set", self.ends[1], state).returncode == 0

    def remove(self) -> None:
        ip("link", "del", self.ends[0])
        for space in self.spaces:
            ip("netns", "del", space)


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable(str(os.getpid() % 100_000))
    try:
        try:
            fault = made.lay()
        except OSError as error:
            fault = str(error)
        if fault:
            pytest.skip(f"no network namespaces here: {fault}")
        yield made
    finally:
        with_ip = Path("/usr/sbin/ip").exists() or Path("/sbin/ip").exists()
        if with_ip:
            made.remove()


class Nodes:
    """torchrun in each namespace, with the arguments that ``sprout launch --nodes 2`` prints."""

    def __init__(self, drill: RanksDrill, cable: Cable) -> None:
        self.drill, self.cable = drill, cable

    def start(self, restarts: int) -> list[subprocess.Popen[bytes]]:
        job = Job("recipe.yaml", ["run=run"], 2, 1, False, host=ADDRESSES[0], max_restarts=restarts, name="cable")
        made = []
        for space, end, address in zip(self.cable.spaces, self.cable.ends, ADDRESSES, strict=True):
            # Both namespaces have this host's name, so each says by which address it is reached.
            words = [f"--local-addr={address}", f"--rdzv-conf=is_host={int(address == ADDRESSES[0])}", *job.arguments()]
            command = ["ip", "netns", "exec", space, sys.executable, "-m", "torch.distributed.run", *words]
            settings = environment() | {"GLOO_SOCKET_IFNAME": end, "CUDA_VISIBLE_DEVICES": ""}
            with open(self.drill.folder / f"log-{address[-1]}", "a") as log:
                made.append(subprocess.Popen(command, cwd=self.drill.folder, env=settings, stdout=log, stderr=log))
        return made

    def printed(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.drill.folder.glob("log-*")))

    def until(self, pattern: str) -> None:
        end = time.monotonic() + 70
        while not re.search(pattern, self.printed()):
            assert time.monotonic() < end, f"{pattern!r} was not said:\n{self.printed()}"
            time.sleep(0.05)

    def until_acted(self) -> None:
        end = time.monotonic() + PATIENCE
        while not (self.drill.folder / "acted.json").exists():
            assert time.monotonic() < end, self.printed()
            time.sleep(0.01)


@pytest.fixture
def nodes(cable: Cable, launch: Launcher, tmp_path: Path) -> Iterator[Nodes]:
    with nothing_left(tmp_path):
        yield Nodes(RanksDrill(write_project(tmp_path / "project"), launch), cable)


def ends(made: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(timeout=PATIENCE) for process in made]


@pytest.mark.slow
def test_a_link_that_is_cut_ends_the_run_with_a_sentence_and_the_same_lines_continue_it(nodes: Nodes) -> None:
    nodes.drill.plan(1, 21, "wait")  # in the sixth step of eight; step 3 is saved
    made = nodes.start(restarts=0)
    nodes.until_acted()
    nodes.cable.set("down")
    (nodes.drill.folder / "go").touch()
    nodes.until(
        r"error: rank 0 cannot go on after step 5 \(.*\): rank 1 \(process \d+ on \S+\) was killed, frozen or cut off in step 6"
    )
    nodes.until(
        r"error: rank 1 cannot go on after step 5 \(.*\); the process that keeps the ranks together is gone or cannot"
    )
    nodes.cable.set("up")
    assert 0 not in ends(made)
    assert nodes.drill.saved() == [3]

    assert ends(nodes.start(restarts=0)) == [0, 0]
    assert "continuing from step 3 of 8" in nodes.printed() and nodes.drill.saved()[-1] == STEPS


@pytest.mark.slow
def test_a_link_that_comes_back_is_recovered_from_by_a_restart(nodes: Nodes) -> None:
    nodes.drill.plan(1, 21, "wait")
    made = nodes.start(restarts=2)
    nodes.until_acted()
    nodes.cable.set("down")
    (nodes.drill.folder / "go").touch()
    nodes.until(r"error: rank 0 cannot go on after step 5")
    nodes.cable.set("up")
    assert ends(made) == [0, 0], nodes.printed()
    assert "continuing from step 3 of 8" in nodes.printed() and nodes.drill.saved()[-1] == STEPS
