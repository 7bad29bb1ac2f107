"""The next batch while this one is computed: what a GPU would otherwise wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ..data.loader import Batch


class Ahead:
    """``batch(step)`` as ``source`` gives it. Asked for one step, a thread of its own makes the next one ready meanwhile: a
    pure function of the step may be asked early. ``pinned``: in memory that a GPU can copy from while it computes.
    """

    def __init__(self, source: Callable[[int], Batch], last_step: int, *, pinned: bool) -> None:
        self.source, self.last_step, self.pinned = source, last_step, pinned
        self._pool = ThreadPoolExecutor(1, "next-batch", initializer=torch.set_num_threads, initargs=(1,))
        self._ready: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        waiting, self._ready = self._ready, {}
        future = waiting.get(step) or self._pool.submit(self._make, step)
        if step + 1 < self.last_step:
            self._ready[step + 1] = self._pool.submit(self._make, step + 1)
        return future.result()

    def _make(self, step: int) -> Batch:
        batch = self.source(step)
        return batch.pinned() if self.pinned else batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
