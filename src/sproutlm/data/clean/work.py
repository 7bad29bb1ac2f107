"""The files of a cleaning run: where each lies, and how it is written so that a killed run leaves nothing half done.

The unit of work is a block: a stretch of consecutive documents. Which blocks there are, and what is in them, depends on
the input alone; tasks only share them out. So any number of tasks, killed at any time, ends in the same bytes.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """The folders below ``out``."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / "work"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    def removed(self, name: str) -> Path:
        """[place in the filtered block, exact or minhash, id of the kept document] of each that goes."""
        return self.folder / "removed" / f"{name}.json.gz"

    @property
    def report(self) -> Path:
        return self.out / "report.json"

    def block(self, name: str) -> Path:
        return self.folder / "blocks" / f"{name}.jsonl.gz"

    def filtered(self, name: str) -> Path:
        return self.folder / "filtered" / f"{name}.jsonl.gz"

    def keys(self, name: str) -> Path:
        """(2 + bands, documents) uint64: a 128-bit hash for exact duplicates, then a key per band."""
        return self.folder / "keys" / f"{name}.npy"

    def sketches(self, name: str) -> Path:
        """(documents, bands * rows) uint8: by which candidates for near duplicates are compared."""
        return self.folder / "keys" / f"{name}.sketches.npy"

    def ids(self, name: str) -> Path:
        """The document ids of a filtered block, a JSON list."""
        return self.folder / "keys" / f"{name}.ids.json.gz"

    @property
    def index(self) -> Path:
        return self.folder / "evaluation_index.npz"

    def groups(self, number: int) -> Path:
        return self.folder / "groups" / f"{number:03d}.npy"

    def clean(self, name: str) -> Path:
        return self.out / "clean" / f"{name}.jsonl.gz"

    def rejects(self, reason: str, name: str) -> Path:
        return self.out / "rejects" / reason / f"{name}.jsonl.gz"

    def note(self, stage: str, name: str | int) -> Path:
        """What a stage says of one unit; written last, it marks the unit as done."""
        return self.folder / "notes" / stage / f"{name}.json"

    def done(self, stage: str) -> int:
        """How many units of a stage are done."""
        try:
            return sum(name.endswith(".json") for name in os.listdir(self.folder / "notes" / stage))
        except FileNotFoundError:
            return 0

    def blocks(self, units: int) -> list[str]:
        """The names of all blocks, in the order of the input; needs the first stage to be done."""
        return [name for unit in range(units) for name in read_json(self.note("read", f"{unit:05d}"))["blocks"]]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; two tasks that write the same bytes do not disturb each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def write_rows(path: Path, rows: Iterable[dict[str, Any]], level: int = 6) -> None:
    """Rows as .jsonl.gz, the same bytes for the same rows: no name and no time in the header."""
    import orjson

    data = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    write_bytes(path, gzip.compress(data, level, mtime=0))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    import orjson

    with gzip.open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


def write_array(path: Path, array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
