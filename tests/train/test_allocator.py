"""Blocks that are freed are found ready again: the kernel hands out each page once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sproutlm.train import allocator

STEPS = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from sproutlm.train.allocator import keep_freed_memory

size = 48_000_000
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    return len(b"x" * size)  # 48 MB, written and freed
with ThreadPoolExecutor(2) as pool:
    for _ in range(2):
        list(pool.map(lambda _: step(), range(4)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        list(pool.map(lambda _: step(), range(4)))
    print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def faults(how: str) -> tuple[bool | None, int]:
    out = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout
    kept, count = json.loads(out)
    return kept, count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_a_repeated_step_faults_no_page_in_again() -> None:
    kept, count = faults("keep")
    if not kept:
        pytest.skip("this C library is not glibc")
    _, without = faults("leave")
    assert without > 50_000, "48 MB are 11,719 pages, of each of twelve blocks"
    assert count < without / 20


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
