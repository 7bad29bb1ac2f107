"""What is said to fit fits, what is said not to does not, and the settings named are a recipe's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sproutlm.config.model import ModelConfig
from sproutlm.config.presets import PRESETS
from sproutlm.config.schema import Recipe
from sproutlm.plan import Setting, count, inference_memory, training_memory
from sproutlm.plan.fit import (
    CARDS,
    CHECKPOINTING,
    EFFECTS,
    LEVERS,
    USABLE,
    cards,
    checkpointing_time,
    fit_training,
    longest_context,
    machine,
)

GPT2 = ModelConfig(**PRESETS["gpt2"].shape)
ASKED = Setting(rows=64, seq_len=1024, optimizer="adamw")
FIELDS = {lever.key: lever.field for lever in LEVERS}


def need(setting: Setting) -> int:
    return sum(training_memory(GPT2, setting).values())


def with_settings(changes: dict[str, Any]) -> Setting:
    return replace(ASKED, **{FIELDS[key]: value for key, value in changes.items()})


@pytest.mark.parametrize("gib", [2.75, 3, 3.5, 4, 6, 8, 16, 24, 80])
def test_the_named_settings_make_it_fit_and_less_would_not(gib: float) -> None:
    room = int(gib * 2**30)
    found = fit_training(GPT2, ASKED, room)
    changes = found["settings"]
    assert changes is not None and need(with_settings(changes)) == found["bytes"] <= room
    if changes:
        assert need(ASKED) > room
    if set(changes) == {"train.micro_batch"}:
        assert need(replace(ASKED, rows=2 * changes["train.micro_batch"])) > room
    most = replace(with_settings(changes), rows=found["micro_batch_at_most"])
    assert need(most) <= room < need(replace(most, rows=2 * most.rows)) or most.rows == 1024


def test_what_changes_least_comes_first() -> None:
    """Each room takes what is needed and nothing that changes more: fewer rows, then time for memory, then other rounding,
    then shorter rows (Muon's working room is too large here)."""
    one = replace(ASKED, rows=1)
    least = replace(one, checkpointing="blocks", loss_chunk=128)
    rooms = [400 * 2**30, 8 * 2**30, need(one) - 1, need(least), need(least) - 1]
    kinds = [set(fit_training(GPT2, ASKED, room)["settings"]) for room in rooms]
    assert kinds[0] == set() and kinds[1] == {"train.micro_batch"}
    assert kinds[2] in ({"train.micro_batch", "train.loss_chunk"}, {"train.micro_batch", "train.checkpointing"})
    assert kinds[3] == {"train.micro_batch", "train.checkpointing", "train.loss_chunk"}
    assert "optimizer.state_dtype" in kinds[4] and not kinds[4] & {"optimizer.name", "data.seq_len"}
    rounded = [replace(least, state_dtype="int8", compute=compute) for compute in ("bf16", "float32")]
    assert "data.seq_len" in fit_training(GPT2, ASKED, min(map(need, rounded)) - 1)["settings"]


def test_checkpointing_is_offered_from_what_a_recipe_has() -> None:
    """Never less than it asked for, and with what it costs: selective less than blocks."""
    room = need(replace(ASKED, checkpointing="blocks", rows=32))
    for asked, named in (("none", {"blocks"}), ("selective", {"blocks"}), ("blocks", set())):
        cures = fit_training(GPT2, replace(ASKED, checkpointing=asked), room)["cures"]
        assert {c["settings"].get("train.checkpointing") for c in cures} - {None} == named
    costs = {c: checkpointing_time(GPT2, ASKED, replace(ASKED, checkpointing=c)) for c in CHECKPOINTING}
    assert costs["none"] == 1.0 < costs["selective"] < costs["blocks"] < 4 / 3


def test_what_no_setting_helps_does_not_fit() -> None:
    assert fit_training(GPT2, ASKED, 2**30) == {
        "settings": None,
        "micro_batch_at_most": 0,
        "bytes": need(ASKED),
        "cures": [],
    }


def test_every_setting_named_is_a_key_of_a_recipe() -> None:
    for key in FIELDS:
        section, name = key.split(".")
        assert name in Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama3.2-1b", "gemma2-2b"])
def test_the_longest_context_is_the_longest(name: str, rows: int) -> None:
    config, room = ModelConfig(**PRESETS[name].shape), 12 * 2**30
    longest = longest_context(config, rows, room, "float32")
    assert sum(inference_memory(config, rows, longest, "float32").values()) <= room
    if longest < config.max_seq_len:
        assert sum(inference_memory(config, rows, longest + 64, "float32").values()) > room


def test_a_model_beyond_the_room_has_no_context() -> None:
    assert longest_context(ModelConfig(**PRESETS["qwen3-8b"].shape), 1, 8 * 2**30, "bf16") == 0


def test_cards_and_this_machine() -> None:
    assert [place.name for place in cards()] == [f"{gib} GB" for gib in (4, 8, 12, 16, 24, 40, 80, 141)]
    assert all(place.room < gib * 2**30 for place, gib in zip(cards(), CARDS, strict=True))
    assert machine(2**34, None).name == "CPU 16 GB" and machine(2**34, 2**30).room == 2**30


def test_cures_are_ranked_by_what_happens_to_the_training() -> None:
    """The same training before shorter rows; none moves what a better one leaves alone and more."""
    cures = fit_training(GPT2, ASKED, 8 * 2**30)["cures"]
    effects = [EFFECTS.index(cure["effect"]) for cure in cures]
    assert effects == sorted(effects) and effects[0] == 0 and len(cures) > 1
    assert all(cure["bytes"] == need(with_settings(cure["settings"])) <= 8 * 2**30 for cure in cures)
    keys = [set(cure["settings"]) for cure in cures]
    assert not any(a < b for a in keys for b in keys)


def test_side_by_side_costs_a_set_of_activations_each_and_taking_turns_is_a_cure() -> None:
    asked = Setting(8, 256, "float32", device="cpu", streams=4, checkpointing="blocks", loss_chunk=128)
    config = ModelConfig(vocab_size=1000, dim=256, n_layers=8, n_heads=4)
    one, four = (training_memory(config, replace(asked, streams=n)) for n in (1, 4))
    assert four["activations"] == 4 * one["activations"] and four["gradients"] > one["gradients"]
    room = sum(training_memory(config, replace(asked, rows=1)).values()) - 1
    assert fit_training(config, asked, room)["settings"]["train.streams"] == 1


@pytest.mark.parametrize(
    ("parameters", "gib", "shape"),
    [
        (20e6, 4, {"vocab_size": 6400, "dim": 448, "n_layers": 7, "n_heads": 7}),
        (380e6, 8, {"vocab_size": 32000, "dim": 1024, "n_layers": 30, "n_heads": 16, "n_kv_heads": 8}),
    ],
)
def test_the_known_hard_cases_fit_with_the_settings_named(parameters: float, gib: int, shape: dict[str, Any]) -> None:
    """Others' trainers ran out of memory there: 64 rows of 512 at once, AdamW."""
    config = ModelConfig(max_seq_len=512, **shape)
    assert abs(count(config).total / parameters - 1) < 0.02
    asked = Setting(rows=64, seq_len=512, optimizer="adamw")
    room = int(gib * 2**30 * USABLE)
    found = fit_training(config, asked, room)
    assert found["settings"] is not None
    named = replace(asked, **{FIELDS[key]: value for key, value in found["settings"].items()})
    assert sum(training_memory(config, named).values()) <= room
    assert named.rows < asked.rows and named.seq_len == 512  # fewer rows at once, not shorter ones
