"""Tensors by name that are made when they are asked for, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]
READERS = 4  # threads; reading and casting is waiting for memory pages most of the time


class Lazy(Mapping[str, Tensor]):
    """``makers``: name -> a function that makes the tensor, called at each reading.

    ``header``: the same names with tensors that have shape and type but no values, where they are known without making.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]], header: State | None = None) -> None:
        self._makers = makers
        self._header = header

    def header(self) -> State:
        return self if self._header is None else self._header

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def own(self, name: str) -> Tensor:
        maker = self._makers[name]
        return maker.own() if isinstance(maker, Reader) else maker()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def header_of(state: State) -> State:
    """Shapes and types of ``state``: read from a file's header where it comes from one, else the tensors themselves."""
    header = getattr(state, "header", None)
    return state if header is None else header()


def own(state: State, name: str) -> Tensor:
    """``state[name]`` for one who copies it at once: in memory of its own instead of a view of a file, so that the pages of
    the file do not stay beside the copy."""
    read = getattr(state, "own", None)
    return state[name] if read is None else read(name)


@dataclass(frozen=True)
class Reader:
    """A maker that reads ``name`` of ``state``."""

    state: State
    name: str

    def __call__(self) -> Tensor:
        return self.state[self.name]

    def own(self) -> Tensor:
        return own(self.state, self.name)


def reader(state: State, name: str) -> Callable[[], Tensor]:
    """A maker that reads ``name`` of ``state``."""
    return Reader(state, name)


def read_all(state: State, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of ``names`` (None: all), made by several threads at once."""
    wanted = list(state if names is None else names)
    with ThreadPoolExecutor(READERS) as threads:
        return dict(zip(wanted, threads.map(state.__getitem__, wanted), strict=True))
