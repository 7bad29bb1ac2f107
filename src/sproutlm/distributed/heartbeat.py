"""Who is behind when ranks wait: each one's pulse, in the store that torchrun keeps, whatever the ranks themselves do.

A thread counts up every second and says at which step its rank is. A count that stands still belongs to a process that was
killed or frozen, or whose host cannot be reached; one that moves at an earlier step than the others', to a rank that is slow or
stuck. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ..config.parallel import ParallelConfig
from ..errors import RankLost
from .ranks import Ranks, first_line

BEAT = 1.0  # seconds
LOOK = 4 * BEAT  # between two looks at the pulses
PATIENCE = 10.0  # seconds for the store to answer
# How torch's exceptions of exchanges that failed begin or what they name; they have no type of their own for gloo.
OF_EXCHANGES = ("gloo", "nccl", "connection", "timed out", "processgroup", "c10d", "socket", "store")


class Heartbeat:
    """``ranks.at`` is the step that this rank is in. ``limit``: seconds in one step after which a rank on a GPU, whose exchanges
    do not fail by themselves in time to say so, is ended here."""

    def __init__(self, ranks: Ranks, limit: float) -> None:
        self.ranks, self.limit = ranks, limit
        self._store = ranks.store.clone()
        self._stop = threading.Event()
        self._count = 0
        self._leaving = ""
        self._beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._count += 1
        here = {"host": socket.gethostname(), "pid": os.getpid(), "leaving": self._leaving}
        pulse = {"count": self._count, "step": self.ranks.at, **here}
        self._store.set(f"pulse/{self.ranks.rank}", json.dumps(pulse))

    def _run(self) -> None:
        last, since = self.ranks.at, time.monotonic()
        while not self._stop.wait(BEAT):
            try:
                self._beat()
            except Exception:  # the store is gone, and with it the run: the loop hears of it in its next exchange
                return
            if self.ranks.at != last:
                last, since = self.ranks.at, time.monotonic()
            elif last and self.ranks.device.type == "cuda" and time.monotonic() - since > self.limit:
                print(f"error: {self.sentence(f'no step for {self.limit:.0f} s')}", file=sys.stderr, flush=True)
                os._exit(RankLost.exit_code)

    def close(self) -> None:
        self._stop.set()

    def leave(self, why: str) -> None:
        """Tell the others that this rank will be silent for a reason: it ``waited`` for another, or ``failed``."""
        self._leaving = why
        with contextlib.suppress(Exception):  # the store may be gone, and nobody is left to tell
            self._beat()

    def _pulses(self) -> dict[int, dict[str, Any]]:
        found = {}
        for rank in range(self.ranks.size):
            if self._store.check([f"pulse/{rank}"]):
                found[rank] = json.loads(self._store.get(f"pulse/{rank}"))
        return found

    def _look(self, looked: list[dict[int, dict[str, Any]]]) -> None:
        """Two looks at the pulses, with time between them for each to beat."""
        with contextlib.suppress(Exception):  # the store is gone
            self.leave("waited")
            looked.append(self._pulses())
            time.sleep(LOOK)
            looked.append(self._pulses())

    def sentence(self, why: str) -> str:
        """Which rank the others wait for, as far as the store can be asked."""
        here = f"rank {self.ranks.rank} cannot go on after step {self.ranks.at - 1 if self.ranks.at else 0} ({why})"
        end = "start the same command again: it continues from the newest checkpoint (torchrun --max-restarts does so by itself)"
        looked: list[dict[int, dict[str, Any]]] = []
        looking = threading.Thread(target=self._look, args=(looked,), name="looking", daemon=True)
        looking.start()
        looking.join(LOOK + PATIENCE)  # a store behind a cut cable answers nothing, not even an error, for many minutes
        if len(looked) < 2:
            return f"{here}; the process that keeps the ranks together is gone or cannot be reached; {end}"
        before, now = looked
        waited = [rank for rank, pulse in now.items() if pulse["leaving"] == "waited"]
        failed = [rank for rank, pulse in now.items() if pulse["leaving"] == "failed"]
        still = [rank for rank in range(self.ranks.size) if now.get(rank) == before.get(rank)]
        silent = [rank for rank in still if rank not in waited + failed]
        furthest = max((pulse["step"] for pulse in now.values()), default=0)
        moving = [rank for rank in now if rank not in still + failed]
        behind = [rank for rank in moving if now[rank]["step"] < furthest]
        parts = []
        for rank in failed:
            parts.append(f"rank {rank} ended by an error, which its own message tells")
        for rank in silent:
            pulse = now.get(rank, {"step": 0, "host": "an unknown host", "pid": "?"})
            where = f"process {pulse['pid']} on {pulse['host']}"
            # Its last pulse may be older than the moment at which it fell silent; no rank is a step ahead of the others.
            step = max(pulse["step"], self.ranks.at)
            parts.append(f"rank {rank} ({where}) was killed, frozen or cut off in step {step}")
        for rank in behind:
            pulse = now[rank]
            where = f"process {pulse['pid']} on {pulse['host']}"
            parts.append(f"rank {rank} ({where}) is still in step {pulse['step']}, the others in step {furthest}")
        return f"{here}: {'; '.join(parts) or 'every rank answers, at the same step'}; {end}"


@contextlib.contextmanager
def joined(asked: ParallelConfig, device: torch.device) -> Iterator[Ranks]:
    """This process among those of its run, which is left at the end; an exchange that fails becomes a sentence that names the
    rank that was waited for."""
    ranks = Ranks.join(asked, device)
    if ranks.size == 1:
        yield ranks
        return
    heartbeat = Heartbeat(ranks, asked.timeout)
    try:
        with _last_words():
            try:
                yield ranks
            except Exception as error:
                if not _of_exchange(error):
                    heartbeat.leave("failed")
                    raise
                raise RankLost(heartbeat.sentence(_reason(error))) from error
    finally:
        heartbeat.close()
        ranks.close()


def _of_exchange(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in OF_EXCHANGES)


def _reason(error: Exception) -> str:
    """What torch says, without the place in its source and the advice to read logs."""
    return re.sub(r"^\[[^\]]*\] ", "", first_line(error)).partition(". This is typically")[0]


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """SIGTERM, which torchrun sends to all as soon as one rank is gone, does not end this one before it has said why it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unless_failing(number: int, frame: Any) -> None:
        if sys.exc_info()[1] is None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, unless_failing)
    yield
    signal.signal(signal.SIGTERM, before)  # not after a fault: what it says is still to be printed
