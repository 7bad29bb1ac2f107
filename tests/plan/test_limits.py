"""Limits on memory: every group of the path counts, the file cache does not, and what cannot be read is no limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sproutlm.errors import SproutError
from sproutlm.plan.limits import control_groups, parse_bytes, tightest

GB = 2**30


def group(folder: Path, limit: str, used: int, cache: int = 0, v1: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cache}\n{'total_' if v1 else ''}inactive_file {cache}\n")


def test_a_limit_further_up_the_path_counts(tmp_path: Path) -> None:
    """Version 2: the process's own group has none, the one above it has."""
    group(tmp_path / "job/step", "max", GB)
    group(tmp_path / "job", str(4 * GB), 2 * GB)
    (tmp_path / "m").write_text("0::/job/step\n")
    (found,) = control_groups(own=GB, root=tmp_path, membership=tmp_path / "m")
    assert found.room == 3 * GB and str(tmp_path / "job") in found.what  # others use 1 GB of the 4


def test_version_one_and_a_root_that_is_the_containers_own(tmp_path: Path) -> None:
    group(tmp_path / "memory", str(2 * GB), GB // 2, v1=True)
    group(tmp_path / "memory/docker/abc", str((1 << 63) - 4096), GB // 2, v1=True)  # version 1's "none"
    (tmp_path / "m").write_text("5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    (found,) = control_groups(own=GB // 2, root=tmp_path, membership=tmp_path / "m")
    assert found.room == 2 * GB


def test_cache_can_be_given_back(tmp_path: Path) -> None:
    group(tmp_path, str(4 * GB), 4 * GB, cache=3 * GB)
    (found,) = control_groups(own=0, root=tmp_path, membership=tmp_path / "missing")
    assert found.room == 3 * GB


def test_the_least_limit_wins_and_is_named(tmp_path: Path) -> None:
    where = {"root": tmp_path / "none", "membership": tmp_path / "none"}
    assert tightest(0, 8 * GB, environ={}, **where).room == 8 * GB
    stated = tightest(0, 8 * GB, environ={"SPROUT_MEMORY_LIMIT": "2.5GB"}, **where)
    assert stated.room == int(2.5 * GB) and "SPROUT_MEMORY_LIMIT=2.5GB" in stated.what


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("2k", 2048), ("3 MiB", 3 << 20), ("1b", 1), ("1T", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-1", "1.5.2GB", "GB"])
def test_no_size(text: str) -> None:
    with pytest.raises(SproutError, match="expected bytes, or a size"):
        parse_bytes(text)
