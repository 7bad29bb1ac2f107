"""Learning-rate schedules: written-out tables, and what holds for every setting (pitfall 30)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.config.schema import ScheduleConfig
from sproutlm.train.schedule import multiplier, warmup_steps

# Ten steps, two of warm-up, final share 0.1; worked out by hand.
TABLES = {
    "wsd": [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1],
    "linear": [1 / 3, 2 / 3, 1.0, *(1 - 0.9 * k / 7 for k in range(1, 7)), 0.1],
    # 0.1 + 0.9 * (1 + cos(pi * k / 7)) / 2
    "cosine": [1 / 3, 2 / 3, 1.0, 0.955436, 0.830570, 0.650134, 0.449866, 0.269430, 0.144564, 0.1],
}


@pytest.mark.parametrize("name", TABLES)
def test_schedule_equals_its_table(name: str) -> None:
    """Pitfall 30: the rate of every step, the warm-up and the last step included."""
    config = ScheduleConfig(name=name, warmup=2, decay=0.5, final=0.1)  # type: ignore[arg-type]
    assert [multiplier(config, step, 10) for step in range(10)] == pytest.approx(TABLES[name], abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["wsd", "cosine", "linear"]),
    warmup=st.one_of(st.integers(0, 60), st.floats(0, 0.99)),
    decay=st.floats(0.001, 1),
    final=st.floats(0, 1),
    total=st.integers(2, 80),
)
def test_never_above_the_peak_reached_after_warmup_and_final_at_the_last_step(
    name: str, warmup: float, decay: float, final: float, total: int
) -> None:
    """Pitfall 30, for any setting."""
    config = ScheduleConfig(name=name, warmup=warmup, decay=decay, final=final)  # type: ignore[arg-type]
    values = [multiplier(config, step, total) for step in range(total)]
    n = warmup_steps(config, total)
    assert all(0 <= v <= 1 for v in values)
    assert values[-1] == pytest.approx(final, abs=1e-12)
    assert all(a < b for a, b in zip(values[:n], values[1:n], strict=False)), "the warm-up rises at each step"
    assert all(0 < v < 1 for v in values[:n]), "the warm-up is below the peak, and its first step already trains"
    after = values[n:]
    assert all(a >= b - 1e-12 for a, b in zip(after, after[1:], strict=False)), "after it the rate never rises"
    if n < total - 1:
        assert after[0] == 1.0, "the peak is reached, exactly"


def test_a_share_of_the_run_and_a_number_of_steps_name_the_same_warmup() -> None:
    assert warmup_steps(ScheduleConfig(warmup=0.1), 200) == warmup_steps(ScheduleConfig(warmup=20), 200) == 20


def test_warmup_takes_at_most_half_of_a_short_run() -> None:
    assert warmup_steps(ScheduleConfig(warmup=40), 10) == 5
