"""Tensors by name that are made when they are asked for, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

State = Mapping[str, Tensor]


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

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def header_of(state: State) -> State:
    """Shapes and types of ``state``: read from a file's header where it comes from one, else the tensors themselves."""
    header = getattr(state, "header", None)
    return state if header is None else header()


def reader(state: State, name: str) -> Callable[[], Tensor]:
    """A maker that reads ``name`` of ``state``."""
    return lambda: state[name]
