"""The batch made ready while another is computed is the one that would have been asked for."""

from __future__ import annotations

import threading

import pytest
import torch

from sproutlm.data.loader import Batch
from sproutlm.train.ahead import Ahead


def batch_of(step: int) -> Batch:
    tokens = torch.full((2, 4), step)
    targets = torch.tensor([[1, -100, 2, 3], [-100, -100, 5, -100]])
    return Batch(tokens, targets, torch.arange(4).expand(2, 4), None, torch.tensor([step, step + 1]))


def test_each_step_gets_its_own_batch_whatever_was_made_ready() -> None:
    asked: list[int] = []

    def source(step: int) -> Batch:
        asked.append(step)
        return batch_of(step)

    ahead = Ahead(source, 9, pinned=False)
    got = [int(ahead.batch(step).tokens[0, 0]) for step in (0, 1, 2, 7, 8)]  # 7: a run that went back or was continued
    ahead.close()
    assert got == [0, 1, 2, 7, 8]
    assert max(asked) == 8, "nothing past the last step is made"


def test_the_next_one_is_made_while_this_one_is_computed() -> None:
    made = threading.Event()

    def source(step: int) -> Batch:
        if step == 1:
            made.set()
        return batch_of(step)

    ahead = Ahead(source, 3, pinned=False)
    ahead.batch(0)
    assert made.wait(10)
    ahead.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_asked_for() -> None:
    def source(step: int) -> Batch:
        raise OSError("the disk is gone")

    ahead = Ahead(source, 3, pinned=False)
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.batch(0)
    ahead.close()


def test_a_batch_on_another_device_knows_its_targets_without_asking_the_device() -> None:
    batch = batch_of(3)
    moved = batch.to("meta")  # holds no values: whoever asked it for some would fail
    assert moved.trained == batch.trained == 4
    assert moved.trained_index.shape == (4,)
    assert batch.trained_index.tolist() == [0, 2, 3, 6]
    assert batch.to("cpu") is batch
