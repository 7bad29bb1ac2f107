"""The sampler: every setting does what it says, and no row looks at another."""

from __future__ import annotations

import math

import pytest
import torch

from sproutlm.errors import SproutError
from sproutlm.infer.sampling import SamplingParams, penalise, restrict, sample


def draws(logits: list[float], params: SamplingParams, times: int = 4000) -> torch.Tensor:
    """Shares of each token over ``times`` rows with the same logits, one random stream for all."""
    generator = params.generator()
    rows = torch.tensor([logits]).expand(times, -1)
    tokens = sample(rows, [params] * times, generators=[generator] * times)
    return torch.bincount(tokens, minlength=len(logits)) / times


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 1.1), ("repetition_penalty", 0.0),
     ("max_tokens", 0), ("seed", -1)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SproutError, match=f"{field} is .*expected"):
        SamplingParams(**{field: value})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(SproutError, match="temperature.*top_k"):
        SamplingParams(temperature=-1, top_k=-1)


def test_repetition_penalty_lowers_seen_tokens_whatever_their_sign() -> None:
    """pitfall 41: dividing a negative logit would raise it."""
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_repetition_penalty_of_one_row_leaves_the_others_alone() -> None:
    logits = torch.tensor([[3.0, 2.9], [3.0, 2.9]])
    params = [SamplingParams(temperature=0, repetition_penalty=2.0), SamplingParams(temperature=0)]
    seen = torch.tensor([[True, False], [True, False]])
    assert sample(logits, params, seen=seen).tolist() == [1, 0]


def test_top_k_is_each_rows_own() -> None:
    """pitfall 41: one threshold for the whole batch would empty the row with the small logits."""
    logits = torch.tensor([[9.0, 8.0, 7.0, 6.0], [-9.0, -8.0, -7.0, -6.0]])
    kept = restrict(logits, torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [1.0]])).isfinite()
    assert kept.tolist() == [[True, True, False, False], [False, True, True, True]]


def test_top_p_keeps_the_smallest_set_that_reaches_the_share() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(5, -1)
    share = torch.tensor([[0.0], [0.4], [0.6], [0.9], [1.0]])
    kept = restrict(logits, torch.full((5, 1), 4.0), share).isfinite().sum(-1)
    assert kept.tolist() == [1, 1, 2, 3, 4]


def test_top_p_counts_shares_among_the_top_k() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Among the two likeliest the first has 4/7, which alone is enough for a half.
    assert restrict(logits, torch.tensor([[2.0]]), torch.tensor([[0.5]])).isfinite().tolist() == [[True] + [False] * 3]


def test_tokens_are_drawn_by_their_probability() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    shares = draws(wanted.log().tolist(), SamplingParams(temperature=1.0, seed=1))
    assert torch.allclose(shares, wanted, atol=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    logits = [math.log(0.8), math.log(0.2)]
    cold, warm = (draws(logits, SamplingParams(temperature=t, seed=1))[0].item() for t in (0.5, 2.0))
    assert cold == pytest.approx(16 / 17, abs=0.03)
    assert warm == pytest.approx(2 / 3, abs=0.03)


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    assert draws([1.0, 90.0, -90.0], SamplingParams(temperature=1e-30, seed=1), 50).tolist() == [0.0, 1.0, 0.0]


def test_greedy_takes_the_largest_and_needs_no_generator() -> None:
    assert sample(torch.tensor([[0.0, 2.0, 1.0]]), [SamplingParams(temperature=0)]).tolist() == [1]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0]]).expand(200, -1)
    params = SamplingParams(temperature=1.0, top_k=2, seed=3)
    generator = params.generator()
    tokens = sample(
        logits, [params] * 200, generators=[generator] * 200, forbidden=torch.tensor([[True, False, False]])
    )
    assert 0 not in tokens


def test_a_rows_draw_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(seed=5), SamplingParams(seed=6, top_p=0.8, top_k=7), SamplingParams(temperature=0)]
    together = sample(logits, params, generators=[p.generator() for p in params])
    alone = [sample(logits[i : i + 1], [p], generators=[p.generator()]).item() for i, p in enumerate(params)]
    assert together.tolist() == alone


def test_no_seed_means_other_draws_each_time_and_leaves_the_global_stream_alone() -> None:
    state = torch.get_rng_state()
    logits = torch.zeros(1, 100_000)
    params = SamplingParams(temperature=1.0)
    assert sample(logits, [params], generators=[params.generator()]) != sample(
        logits, [params], generators=[params.generator()]
    )
    assert torch.equal(state, torch.get_rng_state())


def test_logits_that_are_not_numbers_are_a_sentence() -> None:
    with pytest.raises(SproutError, match="not finite.*earlier checkpoint"):
        sample(torch.tensor([[0.0, math.nan]]), [SamplingParams(temperature=0)])


def test_bf16_logits_are_drawn_in_float32() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.bfloat16)
    params = SamplingParams(temperature=0.5, top_p=0.9, repetition_penalty=1.1, seed=1)
    seen = torch.zeros(1, 3, dtype=torch.bool)
    assert sample(logits, [params], seen=seen, generators=[params.generator()]).tolist() == [2]
