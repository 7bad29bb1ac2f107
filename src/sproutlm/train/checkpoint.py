"""Atomic, self-describing checkpoints: safetensors and JSON, nothing that unpickles.

A checkpoint is written into a hidden folder, synced, marked complete by a file that holds every other file's checksum,
and only then renamed into place; ``latest`` moves after that. A kill at any moment leaves the previous one loadable.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..atomic import fsync_path, write_atomic
from ..errors import CheckpointError

MARKER = "COMPLETE"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """None when ``folder`` holds a complete, undamaged checkpoint; otherwise the sentence that says what is wrong."""
    marker = folder / MARKER
    if not marker.is_file():
        return f"{folder} has no {MARKER} marker: the save was cut off"
    try:
        table = json.loads(marker.read_text(encoding="utf-8"))["files"]
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{marker} is unreadable"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}: truncated"
        if file_sha256(path) != digest:
            return f"{path} does not match its checksum: damaged"
    return None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        return json.loads((self.path / "trainer.json").read_text(encoding="utf-8"))

    def model_tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / "model.safetensors")

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / "optimizer.safetensors")


class Checkpointer:
    """Writes, finds and prunes the checkpoints of one run."""

    def __init__(self, folder: Path, keep_last: int = 2, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.say = say
        self._said: set[str] = set()  # the newest checkpoint is looked for more than once; its faults are said once

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints there, rising. What is still being written has a hidden name and never counts."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted(int(p.name[5:]) for p in found if p.name[5:].isdigit() and p.is_dir())

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; each damaged one passed over is said."""
        steps = self.steps()
        for step in reversed(steps):
            fault = verify(self._path(step))
            if fault is None:
                return Checkpoint(self._path(step), step)
            if fault not in self._said:
                self._said.add(fault)
                self.say(f"warning: checkpoint of step {step} is damaged ({fault}); using the one before it")
        if steps:
            raise CheckpointError(
                f"{self.folder}: none of the {len(steps)} checkpoints is undamaged; "
                "remove the folder to start over, or restore it from a copy"
            )
        return None

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        files: dict[str, str],
        keep: set[int] | None = None,
    ) -> Path:
        """Write the checkpoint of ``step``. ``files`` are further text files by name; ``keep`` are steps never pruned."""
        final = self._path(step)
        if step in self.steps() and verify(final) is None:
            return final  # the same step of the same run holds the same bytes
        temporary = self.folder / f".{final.name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".step-*.tmp"):  # of a save or a removal that was cut off
                shutil.rmtree(stale)
            temporary.mkdir()
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in model.items()},
                temporary / "model.safetensors",
                {"format": "pt"},
            )
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in optimizer.items()},
                temporary / "optimizer.safetensors",
                {"format": "pt"},
            )
            files = dict(files, **{"trainer.json": json.dumps(state, indent=1)})
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8", newline="\n")
            table = {}
            for path in sorted(temporary.iterdir()):
                table[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                fsync_path(path)
            write_atomic(temporary / MARKER, json.dumps({"step": step, "files": table}, indent=1))
            fsync_path(temporary)
            self._remove(final)  # if it is there at all, it is damaged
            os.replace(temporary, final)
            fsync_path(self.folder)
            write_atomic(self.folder / "latest", final.name + "\n")
        except Exception as error:  # safetensors raises its own type on a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            full = (
                getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error) or "No space" in str(error)
            )
            if not full and not isinstance(error, OSError):
                raise
            steps = self.steps()
            kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was saved before"
            reason = "the disk is full" if full else str(error)
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} could not be written: {reason}; {kept}. "
                "Make room and start the same command again."
            ) from error
        self._prune(step, keep or set())
        return final

    def _prune(self, newest: int, keep: set[int]) -> None:
        """Remove what is older than the last ``keep_last``. Steps after ``newest`` are damaged ones that the run went
        back from: they are not counted as kept, and are written anew when the run comes to them again."""
        for step in [s for s in self.steps() if s <= newest][: -self.keep_last]:
            if step not in keep:
                self._remove(self._path(step))

    def _remove(self, path: Path) -> None:
        """Hidden first, so that a kill in the middle never leaves half a checkpoint under its own name."""
        if path.exists():
            hidden = path.with_name(f".{path.name}.removed.tmp")
            os.replace(path, hidden)
            shutil.rmtree(hidden)
