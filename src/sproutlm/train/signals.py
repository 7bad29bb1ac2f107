"""SIGTERM and SIGINT while a run trains: the first asks for a save at the next step boundary, Ctrl-C twice stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class StopSignal:
    """``number`` is the signal that came, 0 while none has."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self.say = say

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take both signals; put back what took them before. Only a main thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.number == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        with suppress(RuntimeError):  # Python refuses to print when the signal came in the middle of a print
            self.say(f"{signal.Signals(number).name} received: saving after this step (Ctrl-C again stops at once)")
