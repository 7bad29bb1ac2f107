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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import fsync_path, write_atomic
from ..errors import CheckpointError
from .tensor_file import write_tensors
from .tensor_parts import Bounds, read_tensors

MARKER = "COMPLETE"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
Digests = dict[str, dict[str, Any]]  # file name -> {"bytes": size, "sha256": digest}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """None when ``folder`` holds a complete, undamaged checkpoint; otherwise the sentence that says what is wrong.

    Which files there must be, the marker's table says. They are read side by side: hashing takes longer than the disk.
    """
    marker = folder / MARKER
    if not marker.is_file():
        return f"{folder} has no {MARKER} marker: the save was cut off"
    try:
        table = json.loads(marker.read_text(encoding="utf-8"))["files"]
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{marker} is unreadable"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}: truncated"
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1) or 1) as threads:
        found = list(threads.map(lambda name: file_sha256(folder / name), files))
    for (name, (_, digest)), true in zip(files.items(), found, strict=True):
        if true != digest:
            return f"{folder / name} does not match its checksum: damaged"
    return None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        return json.loads((self.path / "trainer.json").read_text(encoding="utf-8"))

    def model_tensors(self, bounds: Mapping[str, Bounds] | None = None) -> dict[str, Tensor]:
        """Weights by name: whole, or of each the part within its ``bounds``, whatever number of ranks wrote them."""
        return read_tensors(self.path, "model", bounds)

    def optimizer_tensors(self, bounds: Mapping[str, Bounds] | None = None) -> dict[str, Tensor]:
        return read_tensors(self.path, "optimizer", bounds)


class Checkpointer:
    """Writes, finds and prunes the checkpoints of one run."""

    def __init__(self, folder: Path, keep_last: int = 2, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.say = say
        # The newest checkpoint is looked for more than once: its faults are said once, and it is hashed again only when a
        # file of it has changed.
        self._said: set[str] = set()
        self._whole: dict[Path, list[tuple[str, int, int, int]]] = {}

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
            fault = self._fault(self._path(step))
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

    def _fault(self, path: Path) -> str | None:
        """What ``verify`` says, asked once of the same files."""
        try:
            seen = sorted((f.name, (at := f.stat()).st_size, at.st_mtime_ns, at.st_ino) for f in path.iterdir())
        except OSError:  # gone since it was listed: that is for ``verify`` to say
            seen = []
        if self._whole.get(path) == seen:
            return None
        fault = verify(path)
        if fault is None:
            self._whole[path] = seen
        return fault

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        files: dict[str, str],
        keep: set[int] | None = None,
    ) -> Path:
        """Write the checkpoint of ``step``, durably. ``files`` are further text files by name; ``keep`` are steps never
        pruned. CheckpointError where it cannot be written: nothing of it is left, and no other checkpoint was touched."""
        final = self._path(step)
        if step in self.steps() and self._fault(final) is None:
            return final  # the same step of the same run holds the same bytes
        try:
            folder = self._begin(step)
            digests = self._write_tensors(folder, model, optimizer)
            texts = {**files, "trainer.json": json.dumps(state, indent=1)}
            self._seal(folder, step, digests, texts, keep or set())
        except Exception as error:
            shutil.rmtree(self._hidden(step), ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise self._unwritten(step, self._reason(error)) from error
        return final

    # --- the parts of a save ------------------------------------------------------------------------------------------

    def _hidden(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is while it is written."""
        return self.folder / f".{self._path(step).name}.tmp"

    def _begin(self, step: int) -> Path:
        """Make the hidden folder; remove what a save or a removal that was cut off has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = self._hidden(step)
        folder.mkdir()
        return folder

    def _write_tensors(self, folder: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Digests:
        """Write the tensor files into ``folder``, durably; returns their entries of the marker's table."""
        with ThreadPoolExecutor(2) as threads:
            writing = {
                name: threads.submit(write_tensors, folder / name, tensors)
                for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer))
            }
            return {name: written.result() for name, written in writing.items()}

    def _seal(self, folder: Path, step: int, digests: Digests, files: Mapping[str, str], keep: set[int]) -> None:
        """Make ``folder``, which holds the tensor files of ``digests``, the checkpoint of ``step``: write the text files and
        the marker, and give it its name and ``latest``. Then remove those before it but the last ones and ``keep``."""
        table = dict(digests)
        for name, text in files.items():
            table[name] = _write_text(folder / name, text)
        write_atomic(folder / MARKER, json.dumps({"step": step, "files": dict(sorted(table.items()))}, indent=1))
        fsync_path(folder)
        final = self._path(step)
        self._remove(final)  # if it is there at all, it is damaged
        os.replace(folder, final)
        fsync_path(self.folder)
        write_atomic(self.folder / "latest", final.name + "\n")
        try:
            self._prune(step, keep)
        except OSError as error:  # the new one is there: no reason to end a run
            self.say(
                f"warning: {self.folder}: an old checkpoint could not be removed ({error}); remove it to make room"
            )

    @staticmethod
    def _reason(error: OSError) -> str:
        return "the disk is full" if error.errno == errno.ENOSPC else str(error)

    def _unwritten(self, step: int, reason: str) -> CheckpointError:
        steps = self.steps()
        kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was saved before"
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written: {reason}; {kept}. "
            "Make room and start the same command again."
        )

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


def _write_text(path: Path, text: str) -> dict[str, Any]:
    """Write a text file as it is, durably; returns its entry of the marker's table."""
    data = text.encode()
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
