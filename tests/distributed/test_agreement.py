"""Ranks that should agree and do not are named; so is the rank that spoilt a step. No process group is needed for that."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sproutlm.distributed import ALONE, Layout, Piece, Ranks
from sproutlm.distributed.agreement import check_agreement, garbage_kept, suspects
from sproutlm.distributed.dims import ParallelDims
from sproutlm.errors import SproutError


class WithFellow(Ranks):
    """Rank 0 of two, whose fellow says what ``answer`` makes of what this one says."""

    answer: Callable[[Any], Any]

    def gathered(self, value: Any) -> list[Any]:
        return [value, self.answer(value)]


def two(answer: Callable[[Any], Any], shard: int = 1) -> Ranks:
    ranks = WithFellow(0, ParallelDims(outer=2, shard=shard))
    ranks.answer = answer
    return ranks


PIECES = {"a.weight": Piece((4, 3)), "b": Piece((5,))}
TENSORS = {"a.weight": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}


def test_ranks_that_hold_the_same_pass() -> None:
    check_agreement(Layout(two(lambda mine: mine), PIECES), TENSORS, PIECES, 7)
    check_agreement(Layout(ALONE, {}), TENSORS, {}, 7)


def test_one_bit_on_one_rank_is_named() -> None:
    def other(mine: dict[str, Any]) -> dict[str, Any]:
        part, checksum = mine["b"]
        return mine | {"b": (part, checksum ^ 1)}

    with pytest.raises(SproutError, match=r"step 7: ranks that should agree do not: b of rank 1 is not that of rank 0"):
        check_agreement(Layout(two(other), PIECES), TENSORS, PIECES, 7)


def test_every_bit_of_a_tensor_counts() -> None:
    said: list[dict[str, Any]] = []
    ranks = two(lambda mine: said.append(mine) or mine)
    check_agreement(Layout(ranks, PIECES), TENSORS, PIECES, 7)
    nudged = {**TENSORS, "a.weight": TENSORS["a.weight"].clone()}
    nudged["a.weight"][3, 2] = torch.nextafter(nudged["a.weight"][3, 2], torch.tensor(9.0))
    check_agreement(Layout(ranks, PIECES), nudged, PIECES, 7)
    assert said[0]["a.weight"] != said[1]["a.weight"] and said[0]["b"] == said[1]["b"]


def test_parts_that_differ_by_right_are_not_compared() -> None:
    pieces = {"a.weight": Piece((4, 3), ((("outer",), 0),))}
    halves = TENSORS["a.weight"].chunk(2)

    def other(mine: dict[str, Any]) -> dict[str, Any]:
        (_, columns), checksum = mine["a.weight"]
        return {"a.weight": (((2, 4), columns), checksum ^ 1)}

    check_agreement(Layout(two(other, shard=2), pieces), {"a.weight": halves[0]}, pieces, 7)


def test_the_rank_whose_loss_is_not_finite_is_named_with_its_rows() -> None:
    assert suspects(two(lambda mine: (False, [5, 9])), True, [1, 2]) == "rank 1 rows 5, 9"
    assert suspects(two(lambda mine: (True, [5, 9])), True, [1, 2]) == "rank 0 rows 1, 2; rank 1 rows 5, 9"
    assert suspects(ALONE, False, [3, 4]) == "rows 3, 4"


def test_the_collector_rests_while_ranks_train_and_is_put_back() -> None:
    assert gc.isenabled()
    with garbage_kept(two(lambda mine: mine)):
        assert not gc.isenabled()
    assert gc.isenabled()
    with garbage_kept(ALONE):
        assert gc.isenabled()
