"""Checkpoints beside the training loop: a thread copies the tensors while the next step computes, then writes the copy.

Masters and optimizer state change in one place, the update. So the loop goes on at once, waits for the copy (not for the
write) just before its next update, and hears at a later step boundary whether the write went well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SproutError
from .checkpoint import Checkpointer
from .tensor_file import value_bytes

Tensors = dict[str, Tensor]


class BackgroundSaver:
    """Saves through ``checkpointer`` in a thread, one checkpoint at a time.

    The copies stay with it for the next save: what a run needs at most it needs anyway, and the pages are there already.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.checkpointer = checkpointer
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._fault: BaseException | None = None
        self._copies: tuple[Tensors, Tensors] = {}, {}

    def save(
        self,
        step: int,
        model: Tensors,
        optimizer: Tensors,
        state: dict[str, Any],
        files: dict[str, str],
        keep: set[int] | None = None,
    ) -> None:
        """Begin to save, as ``Checkpointer.save``, what the tensors are now; waits for the save before this one and raises
        its fault. Until ``wait_for_copy`` has returned, the tensors must not change; ``state`` must never."""
        self.finish()
        # A GPU may not have made the last update yet: the copy has to come after it.
        ready = None
        if any(tensor.is_cuda for tensor in model.values()):
            ready = torch.cuda.Event()
            ready.record()
        self._copied.clear()
        rest = (state, dict(files), set(keep or ()))
        self._thread = threading.Thread(target=self._run, args=(step, model, optimizer, rest, ready), name="save")
        self._thread.start()

    def wait_for_copy(self) -> None:
        """Return when the tensors may change again: call before each update."""
        self._copied.wait()

    def check(self) -> None:
        """Raise the fault of a save that has failed; does not wait for one under way."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self, say: Callable[[str], None] | None = None) -> None:
        """Return when what was begun is durable; raise its fault, once, or with ``say`` say it as a warning."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if isinstance(fault, SproutError) and say is not None:
            say(f"warning: {fault}")
        elif fault is not None:
            raise fault

    def _run(
        self, step: int, model: Tensors, optimizer: Tensors, rest: tuple[Any, ...], ready: torch.cuda.Event | None
    ) -> None:
        try:
            try:
                pairs = zip(self._copies, (model, optimizer), strict=True)
                copies = [_copy_into(before, tensors, ready) for before, tensors in pairs]
            finally:
                self._copied.set()
            self._copies = copies[0], copies[1]
            self.checkpointer.save(step, copies[0], copies[1], *rest)
        except BaseException as error:  # for the loop, which is in another thread
            self._fault = error


def _copy_into(before: Tensors, tensors: Tensors, ready: torch.cuda.Event | None) -> Tensors:
    """Host copies of ``tensors``, in the memory of the ``before`` ones where they fit."""
    copies: Tensors = {}
    for name, tensor in tensors.items():
        copy = before.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype)
        copies[name] = copy
        if tensor.is_cuda:
            assert ready is not None
            stream = torch.cuda.Stream(tensor.device)  # of its own: the loop's would make it wait for the step's end
            stream.wait_event(ready)
            with torch.no_grad(), torch.cuda.stream(stream):
                copy.copy_(tensor)
        else:  # not by torch, whose threads the step needs
            np.copyto(value_bytes(copy).numpy(), value_bytes(tensor).numpy())
    return copies
