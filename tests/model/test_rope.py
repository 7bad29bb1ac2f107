"""Rotary positions against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.model.rope import apply_rope, document_lengths, rope_frequencies, rope_tables


def shape(head_dim: int, theta: float) -> ModelConfig:
    return ModelConfig(head_dim=head_dim, rope_theta=theta)


@pytest.mark.parametrize(
    ("head_dim", "theta", "golden"),
    [
        (8, 10_000.0, [1.0, 0.1, 0.01, 0.001]),
        (4, 100.0, [1.0, 0.1]),
        (6, 1_000_000.0, [1.0, 0.01, 0.0001]),
    ],
)
def test_rope_frequencies_are_the_golden_ones(head_dim: int, theta: float, golden: list[float]) -> None:
    """pitfall 15: ``theta ** (2i) / d`` or theta in the wrong place leaves no position signal."""
    torch.testing.assert_close(rope_frequencies(head_dim, theta), torch.tensor(golden), rtol=1e-6, atol=0)


def test_rope_turns_each_channel_pair_by_position_times_frequency() -> None:
    """pitfall 15: the pair of channel i is channel i + head_dim/2, as in Hugging Face files."""
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 3, 4)  # (batch, heads, seq, head_dim)
    turned = apply_rope(x, *rope_tables(torch.tensor([0, 1, 7]), shape(4, 100.0), torch.float32))[0, 0]
    for row, position in enumerate((0, 1, 7)):
        fast, slow = position * 1.0, position * 0.1
        expected = [math.cos(fast), math.cos(slow), math.sin(fast), math.sin(slow)]
        torch.testing.assert_close(turned[row], torch.tensor(expected))


def test_attention_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1))

    def score(query_at: int, key_at: int) -> torch.Tensor:
        turned = [
            apply_rope(x, *rope_tables(torch.tensor([at]), shape(16, 10_000.0), torch.float32))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)
    assert (score(9, 4) - score(9, 5)).abs() > 1e-3


def test_bf16_tables_hold_float32_angles() -> None:
    """Angles taken in bf16 would be off by whole turns at position 4,001 (steps of 16 there)."""
    cos, _ = rope_tables(torch.tensor([4001]), shape(2, 10_000.0), torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos.flatten()[0].item() == pytest.approx(math.cos(4001), abs=4e-3)


def test_a_documents_length_is_that_of_its_own_run_of_positions() -> None:
    """Dynamic scaling follows from it: packed documents, padding slots (position 0 each) and decoded tokens apart."""
    rows = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 0, 0, 1, 2, 3, 4, 5]])
    assert document_lengths(rows).tolist() == [[3, 3, 3, 4, 4, 4, 4, 1], [1, 1, 6, 6, 6, 6, 6, 6]]
    assert document_lengths(torch.arange(4)).tolist() == [4] * 4
    assert document_lengths(torch.tensor([[9], [2]])).tolist() == [[10], [3]]
