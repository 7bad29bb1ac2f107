"""Work that outlives its reader: ``sprout train ... | head`` trains to the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

LEFT = "warning: nobody reads the output any more (the pipe was closed); the run goes on, and its figures are in metrics.jsonl"


class Unread:
    """A stream like ``stream``; once its reader has gone away, which is said on ``other``, nothing more is written."""

    def __init__(self, stream: TextIO, other: TextIO | None = None) -> None:
        self._stream, self._other = stream, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._left()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._left()

    def _left(self) -> None:
        """What is still in the buffer, and all that comes, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._other is not None:
            with suppress(OSError):  # its reader may be the same
                print(LEFT, file=self._other, flush=True)


@contextmanager
def goes_on_unread() -> Iterator[None]:
    """While this lasts, a reader of stdout or stderr that goes away ends nothing. Lines come when they are printed, also in a
    pipe: who reads them wants to see the run."""
    out, err = sys.stdout, sys.stderr
    if hasattr(out, "reconfigure"):
        out.reconfigure(line_buffering=True)
    errors = Unread(err)
    sys.stdout, sys.stderr = Unread(out, errors), errors  # type: ignore[assignment,arg-type]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = out, err
