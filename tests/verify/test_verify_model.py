"""``sprout verify model``: every family passes, every option is covered, and each check notices the fault it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sproutlm.cli import main
from sproutlm.config.families import PARTS, SHAPES
from sproutlm.config.model import MoEConfig, ResearchPart, RopeScaling
from sproutlm.families import FAMILIES as ADAPTERS
from sproutlm.model import KVCache, Transformer, attention, transformer
from sproutlm.verify import invariants, model, parity, reference, rope_figures, verify_model
from sproutlm.verify.cases import CASES, SIZES, Case, cases_of
from sproutlm.verify.measure import Measure

HERE = [*model.FAMILIES]


@pytest.mark.parametrize("family", HERE)
def test_every_promise_holds_for_the_family(family: str) -> None:
    report = verify_model(family)
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    without = {check.promise for check in model.CHECKS if check.skip(next(cases_of(family)))}
    promised = {check.promise for check in model.CHECKS} - without
    assert {check["promise"] for check in report["checks"]} == promised


@pytest.mark.parametrize("figures", rope_figures.FIGURES, ids=lambda figures: figures.name)
def test_rotary_frequencies_are_the_golden_ones_for_every_scaling(figures: rope_figures.Figures) -> None:
    found = rope_figures.golden_frequencies(figures)
    assert found.ok, found


# --- nothing is left out --------------------------------------------------------------------------------------------------


def test_every_family_that_can_be_read_is_verified() -> None:
    assert {adapter.name for adapter in ADAPTERS} | {"research"} == set(HERE) == set(SHAPES)


@pytest.mark.parametrize("family", HERE)
def test_every_option_of_the_family_has_a_shape(family: str) -> None:
    """An option that a config may choose and no shape uses would be a promise that nobody checks."""
    configs = [case.config() for case in cases_of(family)]
    for part in sorted(SHAPES[family].open):
        values = {str(getattr(config, part)) for config in configs}
        plain = str({**PARTS, **SHAPES[family].fixed}[part])
        assert values - {plain}, f"{family}: no shape uses {part}"
    if family != "research":
        assert len({config.tie_embeddings for config in configs}) > 0


def test_every_research_part_is_in_a_shape_and_out_of_another() -> None:
    configs = [case.config() for case in cases_of("research")]
    for part in get_args(ResearchPart):
        assert {part in config.research for config in configs} == {True, False}


def test_every_kind_of_rotary_scaling_and_of_experts_has_a_shape() -> None:
    configs = [case.config() for case in CASES.values()]
    kinds = set(get_args(RopeScaling.model_fields["kind"].annotation))
    assert {config.rope_scaling.kind for config in configs if config.rope_scaling} == kinds
    golden = {figures.changes.get("rope_scaling", {}).get("kind") for figures in rope_figures.FIGURES}
    assert golden >= kinds
    mixtures = [config.moe for config in configs if config.moe]
    for name in set(MoEConfig.model_fields) - {"aux_weight", "bias_rate", "z_weight", "n_experts"}:
        assert len({str(getattr(moe, name)) for moe in mixtures}) > 1, name


# --- each check can fail --------------------------------------------------------------------------------------------------


def only(name: str) -> Case:
    return CASES[name]


def swap(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))


def test_a_mask_that_forgets_documents_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    swap(monkeypatch, transformer, "row_mask", lambda f: lambda ids, *rest: f(None, *rest))
    assert not invariants.packed_is_alone(only("qwen3-gqa-tied")).ok
    assert not invariants.documents_apart(only("qwen3-gqa-tied")).ok


def test_a_window_that_a_cache_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    swap(monkeypatch, KVCache, "mask", lambda f: lambda self, seq, window=0: f(self, seq))
    assert not invariants.cached_is_uncached(only("mistral-window")).ok
    assert invariants.cached_is_uncached(only("mistral-full")).ok


def test_positions_that_count_padding_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With learned positions; rotary ones depend on distances alone."""
    swap(
        monkeypatch,
        KVCache,
        "positions",
        lambda f: lambda self, seq: f(self, seq) * 0 + torch.arange(seq) + self.length,
    )
    assert not invariants.batched_is_alone(only("gpt2"), torch.float32).ok


def test_a_padding_row_that_sees_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(f: Any) -> Any:
        def mask(self: KVCache, seq: int, window: int = 0) -> Any:
            keys = torch.arange(self.length + seq)
            seen = f(self, seq, window)
            return seen if seen is None else seen & (keys >= self.start[:, None])[:, None, None, :]

        return mask

    def product(
        q: Any, k: Any, v: Any, mask: Any, *rest: Any
    ) -> Any:  # a plain softmax, which has no rescue for such rows
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT
        scores = scores if mask is None else scores + mask
        return scores.softmax(-1) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    monkeypatch.setattr(attention, "attend", product)
    swap(monkeypatch, KVCache, "mask", blind)
    found = invariants.batched_is_alone(only("qwen3-gqa-tied"), torch.float16)
    assert not found.ok and found.note == "not finite"


def test_a_block_without_its_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    swap(monkeypatch, transformer.Block, "forward", lambda f: lambda self, x, *rest: f(self, x, *rest) - x)
    assert not invariants.identity(only("llama-gqa-tied")).ok


def test_first_weights_from_a_shared_stream_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sproutlm.model import init

    stream = torch.Generator().manual_seed(5)
    monkeypatch.setattr(init, "parameter_generator", lambda seed, name: stream)
    assert not invariants.initial_weights(only("llama-gqa-tied")).ok


def test_a_base_in_the_wrong_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sproutlm.model import rope

    monkeypatch.setattr(
        rope, "rope_frequencies", lambda dim, theta, device=None: 1.0 / theta ** torch.arange(0, dim, 2) / dim
    )
    assert not rope_figures.golden_frequencies(rope_figures.FIGURES[0]).ok


def test_another_loss_or_another_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(f: Any) -> Any:
        def batch_of(tokens: Any) -> Any:
            batch = f(tokens)
            batch.targets[:, -2] = -100
            return batch

        return batch_of

    assert parity.training(only("llama-gqa-tied")).ok
    swap(monkeypatch, parity, "batch_of", shifted)
    assert not parity.training(only("llama-gqa-tied")).ok


def test_a_loader_that_takes_what_it_gets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """pitfall 32"""
    from sproutlm.families.adapter import Family

    monkeypatch.setattr(Family, "state_from_hf", lambda self, config, state: dict(state))
    found = parity.refusals(only("llama-gqa-tied"))
    assert found.error == 12  # three tensors in four ways


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CHECKS", (model.Check("a promise", lambda case: Measure(0.25, 0.5, note="seen")),))


def test_the_command_prints_a_line_per_check_and_writes_its_figures(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "model", "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("a promise" in line and "0.25 of 0.5" in line for line in lines) == len(HERE)
    assert sum("golden frequencies" in line for line in lines) == len(rope_figures.FIGURES)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["ok"] and report["transformers"] == reference.version()


def test_a_failed_check_returns_2_and_names_the_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: Case) -> Measure:
        if case.name == "gpt2-silu":
            raise RuntimeError("no such activation")
        return Measure(0.0)

    monkeypatch.setattr(model, "CHECKS", (model.Check("a promise", measure),))
    assert main(["verify", "model", "--family", "gpt2"]) == 2
    said = capsys.readouterr()
    assert "FAIL  a promise" in said.out and "gpt2-silu: RuntimeError: no such activation" in said.out
    assert "1 check failed" in said.err


def test_an_unknown_family_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model", "--family", "lama"]) == 1
    assert "--family lama: not known; known are qwen3, llama" in capsys.readouterr().err


def test_without_transformers_the_rest_is_checked_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "library", lambda: None)
    monkeypatch.setattr(
        model,
        "CHECKS",
        (
            model.Check("with a reference", lambda case: Measure(0.0), reference=True),
            model.Check("without", parity.round_trip),
        ),
    )
    assert main(["verify", "model", "--family", "qwen2"]) == 0
    said = capsys.readouterr().out
    assert "transformers is not installed" in said and "with a reference" not in said and "ok    without" in said


def test_shapes_stay_tiny() -> None:
    """All of this runs in `make test`."""
    assert SIZES["dim"] <= 32
    for case in CASES.values():
        with torch.device("meta"):
            assert sum(p.numel() for p in Transformer(case.config()).parameters()) < 100_000
