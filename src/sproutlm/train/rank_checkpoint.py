"""Checkpoints of a run of several processes: rank 0 writes what all hold, each rank what only it holds, and one marker ends it.

A checkpoint that was cut off on any rank is no checkpoint: rank 0 gives the folder its name only after every rank has said that
its files are durable. Any number of ranks in any layout continues it (``tensor_parts``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..distributed import Layout, Piece, Ranks
from ..errors import CheckpointError
from .checkpoint import Checkpoint, Checkpointer, Digests
from .tensor_file import write_tensors
from .tensor_parts import offsets_header, part_name


class RankCheckpointer(Checkpointer):
    """``Checkpointer`` whose methods every rank calls. Saves may run in a thread: they exchange in a group of their own."""

    def __init__(self, folder: Path, keep_last: int, say: Callable[[str], None], ranks: Ranks) -> None:
        super().__init__(folder, keep_last, say)
        self.ranks = ranks
        self.layout = Layout(ranks)
        self.pieces: dict[str, Piece] = {}
        self._group = dist.new_group(backend="gloo")

    def share(self, layout: Layout, pieces: Mapping[str, Piece]) -> None:
        """Told by the trainer: which part of each tensor, the optimizer's too, lies on which rank."""
        self.layout = layout
        self.pieces = {**layout.pieces, **pieces}

    def latest(self) -> Checkpoint | None:
        """Rank 0 looks and checks; all take what it found."""
        found: tuple[Path, int] | str | None = None
        if self.ranks.first:
            try:
                newest = super().latest()
                found = None if newest is None else (newest.path, newest.step)
            except CheckpointError as error:
                found = str(error)
        found = self.ranks.told(found)
        if isinstance(found, str):
            raise CheckpointError(found)
        return None if found is None else Checkpoint(*found)

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        files: dict[str, str],
        keep: set[int] | None = None,
    ) -> Path:
        if not self.layout.split:
            if self.ranks.first:
                super().save(step, model, optimizer, state, files, keep)
            return self._path(step)
        final = self._path(step)
        self._all(lambda: self._begin(step) if not self._there(step) else None, step, first=True)
        if self._told(self.ranks.first and self._there(step)):
            return final
        written = self._all(lambda: self._write_mine(self._hidden(step), model, optimizer), step)
        digests = {name: entry for each in written for name, entry in each.items()}
        texts = {**files, "trainer.json": json.dumps(state, indent=1)}
        self._all(lambda: self._seal(self._hidden(step), step, digests, texts, keep or set()), step, first=True)
        return final

    def _there(self, step: int) -> bool:
        return step in self.steps() and self._fault(self._path(step)) is None

    def _write_mine(self, folder: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Digests:
        """The parts that no rank before this one has, in two files of this rank's own."""
        digests: Digests = {}
        for stem, tensors in (("model", model), ("optimizer", optimizer)):
            mine = {n: t for n, t in tensors.items() if self._piece(n, t).written_here(self.ranks)}
            if mine:
                at = {n: [start for start, _ in self._piece(n, t).bounds(self.ranks)] for n, t in mine.items()}
                name = part_name(stem, self.ranks.rank, self.ranks.size)
                digests[name] = write_tensors(folder / name, mine, offsets_header(at))
        return digests

    def _piece(self, name: str, tensor: Tensor) -> Piece:
        return self.pieces.get(name) or Piece(tuple(tensor.shape))

    # --- one outcome for all ------------------------------------------------------------------------------------------

    def _all(self, work: Callable[[], Any], step: int, *, first: bool = False) -> list[Any]:
        """``work`` on every rank, or on rank 0 alone; what each found. Where one fails, all raise, and nothing is left."""
        result: Any = None
        fault: Exception | None = None
        if self.ranks.first or not first:
            try:
                result = work()
            except Exception as error:  # of whatever kind: the others must hear of it
                fault = error
        found: list[Any] = [None] * self.ranks.size
        words = None if fault is None else f"rank {self.ranks.rank} on {self.ranks.host}: {self._words(fault)}"
        dist.all_gather_object(found, (result, words), group=self._group)
        faults = [words for _, words in found if words is not None]
        if faults:
            if self.ranks.first:
                shutil.rmtree(self._hidden(step), ignore_errors=True)
            raise self._unwritten(step, "; ".join(faults)) from fault
        return [result for result, _ in found]

    def _words(self, fault: Exception) -> str:
        return self._reason(fault) if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"

    def _told(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
