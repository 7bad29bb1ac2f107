"""Logits equal those of transformers 5.23, both directions, on tiny random models (src/sproutlm/verify/cases.py).

``sprout verify model`` goes through the same shapes and more; here each direction is one test per shape, and the
comparison is shown to notice what it should.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sproutlm.model import Transformer
from sproutlm.verify import parity
from sproutlm.verify.cases import CASES
from sproutlm.verify.tiny import random_model, random_tokens

WITH_REFERENCE = [name for name, case in CASES.items() if case.theirs is not None]


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_hugging_face_model_read_here_gives_the_same_logits(name: str) -> None:
    found = parity.read_here(CASES[name])
    assert found.ok, found


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_model_written_here_gives_the_same_logits_in_transformers(name: str) -> None:
    """pitfall 43: AutoModelForCausalLM, no remote code, and no key missing, unexpected or of another shape."""
    found = parity.written_for_them(CASES[name])
    assert found.ok, found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen3-gqa-tied", {"rope_theta": 77.0}),
        ("llama-mqa-biases", {"norm_eps": 2e-4}),
        ("mistral-window", {"sliding_window": 7}),
        ("gemma2-caps-windows", {"logit_softcap": 3.1}),
        ("gpt2", {"activation": "gelu"}),
    ],
)
@torch.no_grad()
def test_sizes_that_change_the_result_are_seen_by_the_comparison(name: str, change: dict[str, Any]) -> None:
    """The tests above can fail: another theta, epsilon, window, cap or activation is beyond their tolerance."""
    ours, tokens = random_model(CASES[name]), random_tokens(2, 19)
    other = Transformer(ours.config.model_copy(update=change)).eval()
    other.load_state_dict(ours.state_dict())
    assert (other(tokens) - ours(tokens)).abs().max() > 5 * parity.ATOL
