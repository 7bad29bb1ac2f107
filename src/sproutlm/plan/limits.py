"""How much memory this process may take before the kernel ends it: control groups along their whole path, and the machine.

On Linux a process over its control group's limit is killed without being asked; so a run looks before it starts. The
environment variable ``SPROUT_MEMORY_LIMIT`` (bytes, or 4GB) is one limit more, for places whose limits cannot be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import SproutError

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
VARIABLE = "SPROUT_MEMORY_LIMIT"
NO_LIMIT = 1 << 60  # version 1 writes a number near 2**63 where there is none


@dataclass(frozen=True)
class Limit:
    """``room``: bytes that this process may have in all, its present ones included; ``what`` names who says so."""

    room: int
    what: str


def tightest(
    own: int,
    total: int,
    *,
    root: Path = CGROUP,
    membership: Path = MEMBERSHIP,
    environ: Mapping[str, str] | None = None,
) -> Limit:
    """The least of all limits. ``own``: bytes that this process has resident now; ``total``: the machine's memory."""
    found = [Limit(total, f"this machine's {total / 2**30:.1f} GB")]
    found += control_groups(own, root, membership)
    stated = (os.environ if environ is None else environ).get(VARIABLE, "")
    if stated:
        found.append(Limit(parse_bytes(stated), f"{VARIABLE}={stated}"))
    return min(found, key=lambda limit: limit.room)


def parse_bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kmgt]i?b?|b)\s*", text.lower())
    if match is None:
        raise SproutError(f"{VARIABLE}={text}: expected bytes, or a size such as 4GB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2][:1].replace("b", "") or " "))


def control_groups(own: int, root: Path = CGROUP, membership: Path = MEMBERSHIP) -> list[Limit]:
    """Limits of the groups that this process is in and of all groups above them; version 2 and version 1."""
    found = []
    for folder, limit, used in _folders(root, membership):
        most, now = _number(folder / limit), _number(folder / used)
        if most is None or most >= NO_LIMIT:
            continue
        # What the group's file cache holds can be given back; this process's own pages are part of what is used.
        others = max(0, (now or 0) - _cache(folder / "memory.stat") - own)
        what = f"the control group {folder} ({most / 2**30:.2f} GB, others in it use {others / 2**30:.2f} GB)"
        found.append(Limit(max(0, most - others), what))
    return found


def _folders(root: Path, membership: Path) -> Iterator[tuple[Path, str, str]]:
    """(folder, file of the limit, file of the use), from each group of this process up to the root, once each."""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    paths = {"": "/", "memory": "/"}  # inside a container its own group is the root of what it sees
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            paths[""] = path
        elif "memory" in controllers.split(","):
            paths["memory"] = path
    for version, path in paths.items():
        base = root / version if version else root
        below = Path(*[part for part in Path(path).parts if part not in ("/", "..")])
        for folder in (base / below, *(base / parent for parent in below.parents if below.parts)):
            if folder.is_dir():
                yield folder, *names[version]


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is none


def _cache(path: Path) -> int:
    try:
        rows = dict(line.split(" ", 1) for line in path.read_text().splitlines() if " " in line)
    except OSError:
        return 0
    value = rows.get("total_inactive_file", rows.get("inactive_file", "0"))
    return int(value) if value.isdigit() else 0
