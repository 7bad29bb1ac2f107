"""Encode chunks of rows on several processes: in order, a bounded number under way, with progress for a person."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..errors import DataError
from .encode import EncodedChunk, Encoder
from .sources import Door, RawRow

CHUNK_ROWS, CHUNK_CHARACTERS = 1024, 1 << 20
IN_FLIGHT = 3  # chunks per worker that are read but not yet written
SMALL_BYTES = 4 << 20  # below this, starting processes costs more than they save
QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


def worker_count(asked: int, total_bytes: int) -> int:
    """Processes to use: ``asked``, or one per usable core; 1 (this process alone) for little input."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (asked or usable) if total_bytes > SMALL_BYTES else 1


def expected_bytes(paths: Sequence[Path]) -> int:
    """Roughly how many bytes of text the files hold, for the ETA."""
    total = 0
    for path in paths:
        size, suffix = path.stat().st_size, path.suffix.lower()
        if suffix == ".gz" and size > 4:
            with open(path, "rb") as f:  # the last four bytes: the size before compression, modulo 4 GB
                f.seek(-4, os.SEEK_END)
                size = max(size, int.from_bytes(f.read(4), "little"))
        elif suffix in (".zst", ".parquet"):
            size *= 3
        total += size
    return total


class Part(list[RawRow]):
    """Consecutive rows, and about how many bytes of text they hold."""

    size = 0


def chunks(rows: Iterable[RawRow]) -> Iterator[Part]:
    """Consecutive rows in lists bounded by count and by size; cut the same way from whatever chunk one begins."""
    part = Part()
    for row in rows:
        part.append(row)
        part.size += _text_bytes(row.payload)
        if len(part) == CHUNK_ROWS or part.size >= CHUNK_CHARACTERS:
            yield part
            part = Part()
    if part:
        yield part


def _text_bytes(value: Any) -> int:
    """Bytes of text in a row's payload, about as many as it takes in its file."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(_text_bytes(item) + 8 for item in value.values())
    if isinstance(value, list):
        return sum(_text_bytes(item) for item in value)
    return 8


# --- the processes ----------------------------------------------------------------------------------------------------


class Encoding:
    """The encoder, the processes that hold copies of it (none: this process does the work), and the progress."""

    def __init__(self, encoder: Encoder, pool: ProcessPoolExecutor | None, workers: int, progress: _Progress) -> None:
        self.encoder, self.pool, self.workers, self.progress = encoder, pool, workers, progress

    def passed(self, rows: Iterable[RawRow]) -> None:
        """Pass over rows that an earlier run has done."""
        self.progress.at_start += sum(_text_bytes(row.payload) for row in rows)


@contextmanager
def encoding_processes(
    encoder: Encoder, workers: int, total_bytes: int, say: Callable[[str], None]
) -> Iterator[Encoding]:
    """Start ``workers`` processes (none for 1), and end them whatever happens."""
    pool = None
    if workers > 1:
        # spawn: a fork of a process with threads (torch, tokenizers) may hang
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder,))
    with _Progress(total_bytes, say) as progress:
        try:
            yield Encoding(encoder, pool, workers, progress)
        except BrokenProcessPool:
            raise DataError(
                "a tokenising process ended unexpectedly, most likely for want of memory: set data.workers to a smaller "
                "number, or to 1 (in a script of your own, the call must stand below `if __name__ == '__main__':`)"
            ) from None
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _encoder  # sent once: with every chunk, the tokenizer would cost more than the encoding
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says no goodbye; its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_fields_of = attrgetter(*(field.name for field in fields(RawRow)))  # plain tuples pickle several times faster than rows


def _work(rows: Sequence[tuple[Any, ...]], door: Door) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.chunk([RawRow(*row) for row in rows], door)


def encode_chunks(encoding: Encoding, parts: Iterable[Part], door: Door) -> Iterator[tuple[int, EncodedChunk]]:
    """(rows, encoded) of each chunk, in order; a failed one raises when its turn comes."""
    for n_rows, size, chunk in _in_order(encoding, parts, door):
        yield n_rows, chunk
        encoding.progress.add(size, n_rows, len(chunk.tokens))


def _in_order(encoding: Encoding, parts: Iterable[Part], door: Door) -> Iterator[tuple[int, int, EncodedChunk]]:
    waiting: deque[tuple[int, int, Future[EncodedChunk]]] = deque()
    for part in parts:
        if encoding.pool is None:
            yield len(part), part.size, encoding.encoder.chunk(part, door)
            continue
        rows = [_fields_of(row) for row in part]
        waiting.append((len(part), part.size, encoding.pool.submit(_work, rows, door)))
        if len(waiting) >= IN_FLIGHT * encoding.workers:
            n_rows, size, future = waiting.popleft()
            yield n_rows, size, future.result()
    while waiting:
        n_rows, size, future = waiting.popleft()
        yield n_rows, size, future.result()


# --- progress ---------------------------------------------------------------------------------------------------------


class _Progress:
    """Nothing for two seconds; then a bar on a terminal, and elsewhere a line now and then."""

    def __init__(self, total_bytes: int, say: Callable[[str], None]) -> None:
        self.total, self.say = max(total_bytes, 1), say
        self.done = self.rows = self.tokens = 0
        self.at_start = 0  # bytes that an earlier run has done
        self.started = time.monotonic()
        self.next_line = self.started + QUIET_SECONDS
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, size: int, rows: int, tokens: int) -> None:
        self.done, self.rows, self.tokens = self.done + size, self.rows + rows, self.tokens + tokens
        now = time.monotonic()
        if now < self.next_line:
            return
        if sys.stderr.isatty():
            self._update_bar()
        else:
            self.next_line = now + LINE_SECONDS
            self.say(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        share = min((self.at_start + self.done) / self.total, 0.99)
        left = max(self.total - self.at_start - self.done, 0)
        eta = seconds * left / max(self.done, 1)
        return (
            f"tokenising: {self.rows:,} rows, {self.tokens:,} tokens, about {share:.0%}, "
            f"{self.done / 1e6 / seconds:.1f} MB/s, ETA {eta:.0f} s"
        )

    def _update_bar(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("tokenising"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[tokens]:,} tokens"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("tokenising", total=self.total, tokens=0)
            self._bar.start()
        self._bar.update(self._task, completed=min(self.at_start + self.done, self.total), tokens=self.tokens)
